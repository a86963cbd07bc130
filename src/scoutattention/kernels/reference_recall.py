"""What a step's end decides, in plain PyTorch: shares, recall's policy, and which blocks get which slots.

A block's interest is the running mean of the wishes for the block. Of equals the first comes first.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..types import Copies, RecallRequest, ShareCounts, SharePolicy, ShareRequest, SlotTables, WantedRequest

MARGIN = 1.3
"""How many times the interest in what leaves the interest in what comes must be, so that equals do not swap."""
FREE = -1.0
"""Worth of an empty slot: the first to be filled."""
FULL = float("inf")
"""Worth of a position that is no slot of its row, or whose block stays: never filled."""
GAIN = 0.5
"""How fast the wish threshold follows: by so many e-folds a step where the share is twice the limit."""
FASTEST = 3.0
"""Of a share that is more times its limit, no more is seen."""


class Moves(NamedTuple):
    """Blocks that get slots; four int64 tensors [M]. No two moves in one layer share a slot."""

    row: Tensor
    head: Tensor
    slot: Tensor
    block: Tensor


def worth(content: Tensor, interest: Tensor, quota: Tensor, protected: Tensor) -> Tensor:
    """What emptying slots would lose: the interest in their blocks.

    content: int64 [n, H, S].   interest: float32 [n, H, NB].   quota: int64 [n], slots of the row.
    protected: bool [n or 1, 1, NB], blocks that stay.
    Returns float32 [n, H, S], FREE for an empty slot, FULL for one that is not to be filled.
    """
    held, block = content >= 0, content.clamp(min=0)
    stays = protected.expand(*content.shape[:2], -1).gather(-1, block) & held
    own = torch.arange(content.shape[-1], device=content.device) < quota[:, None, None]
    return interest.gather(-1, block).masked_fill(~held, FREE).masked_fill(stays | ~own, FULL)


def matched(wanted: Tensor, blocks: Tensor, worth: Tensor) -> tuple[Moves, Tensor]:
    """The most wanted block into the slot of least worth, the next into the next, as long as it is wanted more.

    wanted, blocks: [B, H, N], most wanted first.   worth: [B, H, S], FREE where a slot is empty, FULL where its block
        stays.   Returns the moves, and where in `wanted` their blocks are, int64 [M].
    """
    count = min(wanted.shape[-1], worth.shape[-1])
    values, slots = worth.sort(dim=-1, stable=True)
    least = values[..., :count]
    row, head, n = torch.nonzero((wanted[..., :count] > least) & (least < FULL), as_tuple=True)
    return Moves(row, head, slots[row, head, n], blocks[row, head, n]), n


def propose_interesting(interest: Tensor, resident: Tensor, worth: Tensor, most: int) -> tuple[Moves, Tensor]:
    """Moves of at most `most` blocks per KV head, where an absent block interests more than one that has a slot.

    interest: float32 [B, H, NB], -inf for what may not come.   resident: bool [B, H, NB].   worth: float32 [B, H, S].
    Returns the moves, and the place of each in its KV head's order, int64 [M].
    """
    best, blocks = interest.masked_fill(resident, -torch.inf).sort(dim=-1, stable=True, descending=True)
    return matched(best[..., :most], blocks[..., :most], torch.where(worth > 0, worth * MARGIN, worth))


def propose_wanted(worth: Tensor, chosen: Tensor, absent: Tensor, content: Tensor) -> tuple[Moves, Tensor]:
    """Moves for the absent blocks of a choice, the most important first, wherever a slot may be emptied.

    worth: float32 [B, H, S], of the slots.   chosen: int64 [B, H, N].   absent: bool [B, H, N].
    content: int64 [B, H, S]; the present ones of the chosen blocks stay in their slots.
    Returns the moves, and the place of each among its KV head's absent blocks, int64 [M].
    """
    present = chosen.masked_fill(absent, -1)
    stay = (content[..., None] == present[..., None, :]).any(-1) & (content >= 0)
    order = absent.to(torch.int8).argsort(stable=True, dim=-1, descending=True)
    first = absent.gather(-1, order)
    wanted = torch.where(first, torch.inf, -torch.inf)
    return matched(wanted, chosen.gather(-1, order), worth.masked_fill(stay, FULL))


def always_blocks(closed: Tensor, count: int, always: tuple[int, int]) -> Tensor:
    """Sink and recent blocks among `count`, bool [n, 1, count], where sequences have `closed` blocks, int64 [n].

    always: so many sink and recent blocks.
    """
    blocks, end = torch.arange(count, device=closed.device), closed[:, None, None]
    return (blocks < always[0]) | ((blocks >= end - always[1]) & (blocks < end))


def progress(far: Tensor, chosen: Tensor, share: float | None, interval: int) -> Tensor:
    """How much of the way to its next recall a step brings a layer, for each sequence; it recalls at 1.

    far, chosen: int64 [L, B], absent and all chosen blocks of the step.   With a part `share` of them absent it takes
    `interval` steps, with twice that part half as many; without `share` always so many. An interval of 0 is never.
    """
    if interval == 0 or share is None:
        return torch.full_like(far, 1 / interval if interval else 0.0, dtype=torch.float32)
    return far / (chosen * (share * interval)).clamp(min=1e-9)


def adapted(threshold: Tensor, excess: Tensor) -> Tensor:
    """The threshold after a step whose share was `excess` times the limit; both [B]."""
    return threshold * (GAIN * (excess.clamp(max=FASTEST) - 1)).exp()


def count_shares(what: ShareCounts) -> Tensor:
    """Sum what layers counted: int64 [2, L + 1, B], see `ShareRequest.shares`; adds to `what.totals`."""
    scouted, asked, guarded = what.counts
    attended = (what.true_query | what.all_resident)[:, None, :, None]
    seen = (asked if what.guarded else asked + scouted).sum(-1).transpose(0, 1)
    served = (scouted + asked * attended).sum((0, 3)) + guarded[:, 1].sum((0, 2))
    what.totals.add_(torch.cat((served.sum(-1), guarded[:, 0].sum()[None])))
    return torch.cat((seen, served[:, None]), 1)


def follow_shares(what: ShareRequest) -> Tensor:
    """Bring layers nearer to their next recall, and move wish thresholds; returns which are due, bool [L, B]."""
    policy, (chosen, far) = what.policy, what.shares
    so_far = what.progress[:, what.rows] + progress(far[:-1], chosen[:-1], policy.target, policy.interval)
    due = so_far >= 1
    what.progress[:, what.rows] = so_far.masked_fill(due, 0)
    what.recalls.add_(due.sum())
    if policy.limit is not None:
        what.threshold[what.rows] = _next_threshold(what.threshold[what.rows], far[-1], chosen[-1], policy)
    return due


def _next_threshold(threshold: Tensor, far: Tensor, chosen: Tensor, policy: SharePolicy) -> Tensor:
    assert policy.limit is not None
    return adapted(threshold, far / chosen.clamp(min=1) / policy.limit).clamp(policy.lowest, policy.highest)


def recall(what: RecallRequest) -> None:
    """Give slots to blocks that have just closed, and, where recall is due, to absent blocks of high interest.

    A block just closed takes the slot of least worth, wherever there is one that may be filled. Changes the tables,
    and fills `what.copies`.
    """
    row, closed, fill = what.rows
    what.copies[0][:, row] = -1
    full = fill + 1 == what.size
    for chosen, give_slots in ((full.expand_as(what.due), _give_to_new), (what.due, _give_to_interesting)):
        layer, sequence = torch.nonzero(chosen, as_tuple=True)
        if layer.numel():
            give_slots(what, layer, row[sequence], (closed + full)[sequence])


def _give_to_new(what: RecallRequest, layer: Tensor, row: Tensor, end: Tensor) -> None:
    """Give slots to the last block of rows with `end` closed blocks, in the layers beside them; int64 [n] each."""
    slots = what.slots
    content, interest = slots.content[layer, row], slots.interest[layer, row]
    value = worth(content, interest, slots.quota[row], always_blocks(end, interest.shape[-1], what.always))
    block = (end - 1)[:, None, None].expand(*content.shape[:2], 1)
    moves, place = matched(torch.full_like(block, torch.inf, dtype=torch.float32), block, value)
    _note(what, (layer, row), moves, place)


def _give_to_interesting(what: RecallRequest, layer: Tensor, row: Tensor, end: Tensor) -> None:
    """Recall in layers of rows with `end` closed blocks; int64 [n] each."""
    slots, most = what.slots, what.copies[0].shape[-1] - 1
    content, interest = slots.content[layer, row], slots.interest[layer, row]
    block, newest = torch.arange(interest.shape[-1], device=end.device), end[:, None, None] - 1
    stays = always_blocks(end, len(block), what.always) | (block == newest)  # it may just have been given a slot
    value = worth(content, interest, slots.quota[row], stays)
    resident = slots.slot_of[layer, row] != content.shape[-1]
    moves, place = propose_interesting(interest.masked_fill(block > newest, -torch.inf), resident, value, most)
    _note(what, (layer, row), moves, 1 + place)
    what.recalled.add_(place.numel())


def give_wanted(what: WantedRequest) -> Copies:
    """Give slots to the absent blocks of a choice, wherever a slot may be filled; returns what is to be copied.

    Changes the tables. The lists have a place for each chosen block.
    """
    slots, (rows, closed, _) = what.slots, what.rows
    content, interest = slots.content[what.layer, rows], slots.interest[what.layer, rows]
    value = worth(content, interest, slots.quota[rows], always_blocks(closed, interest.shape[-1], what.always))
    moves, place = propose_wanted(value, what.blocks, what.absent, content)
    sequence, head, slot, block = moves
    row = rows[sequence]
    give(slots, torch.full_like(row, what.layer), moves._replace(row=row), what.size)
    layer, page, entry, heads = torch.full((4, *what.blocks.shape), -1, device=rows.device)
    layer.fill_(what.layer)
    heads.copy_(torch.arange(heads.shape[1], device=rows.device)[:, None])
    page[sequence, head, place] = what.table[row, block].long()
    entry[sequence, head, place] = slots.near_index[row, 1 + slot].long()
    what.fetched.add_(row.numel())
    return Copies(*(each.flatten() for each in (layer, page, entry, heads)))


def _note(what: RecallRequest, pairs: tuple[Tensor, Tensor], moves: Moves, place: Tensor) -> None:
    """Change the tables, and write what is to be copied to places of its lists, int64 [M].

    pairs: layers and rows, int64 [n] each.   moves: the row of each is one of the n.
    """
    layer, row = (each[moves.row] for each in pairs)
    _, head, slot, block = moves
    give(what.slots, layer, moves._replace(row=row), what.size)
    page, entry = what.copies
    page[layer, row, head, place] = what.table[row, block].long()
    entry[layer, row, head, place] = what.slots.near_index[row, 1 + slot].long()


def give(tables: SlotTables, layer: Tensor, moves: Moves, size: int, *, empty: bool = False) -> None:
    """Say that blocks of `size` tokens are in slots, and those that were there in none.

    layer: int64 [M].   empty: whether the slots are known to be.   Nothing is copied back: every block has a page.
    """
    row, head, slot, block = moves
    if not empty:
        old = tables.content[layer, row, head, slot]
        (held,) = torch.nonzero(old >= 0, as_tuple=True)
        tables.slot_of[layer[held], row[held], head[held], old[held]] = tables.content.shape[-1]
    tables.content[layer, row, head, slot] = block
    tables.slot_of[layer, row, head, block] = slot
    tables.near_length[layer, row, head, 1 + slot] = size
