"""Recall: gives slots to absent blocks that have become important, in each layer as often as its CPU share asks for.

The policy is pure functions of residency and of the interest in blocks; `Recall` keeps its state and carries out the
moves. A block's interest is the running mean of the wishes for the block.
"""

import torch
from torch import Tensor

from ..cache.batch import Batch
from ..cache.slots import FULL, Moves, Slots
from ..cache.store import KVStore
from ..config import ScoutConfig
from ..kernels.ops import Ops
from .choose import Choice

KEPT = 0.85
"""Of a block's interest, what a step leaves of it; the rest is the step's wish."""
MARGIN = 1.3
"""How many times the interest in what leaves the interest in what comes must be, so that equals do not swap."""
PART = 4
"""A recall moves at most one in so many of a KV head's budget, so that the link carries a steady trickle."""


class Recall:
    """Keeps the state of the recall policy, and carries out the moves that it proposes."""

    def __init__(self, config: ScoutConfig, store: KVStore, slots: Slots, ops: Ops) -> None:
        assert store.transfers is not None
        self._config = config
        self._ops = ops
        self._store = store
        self._slots = slots
        self._transfers = store.transfers
        layers, rows = store.num_layers, store.num_rows
        self._progress = torch.zeros(layers, rows, device=store.device)  # to the next recall, see `progress`
        store.follow(self._progress, fresh=torch.arange(layers, device=store.device) / layers)  # so layers take turns
        self._most = slots.size if config.budget_blocks is None else max(1, config.budget_blocks // PART)

    def note(self, batch: Batch, layer: int, choice: Choice, sequences: Tensor) -> None:
        """Take the wishes of some sequences, bool [B], into the interest in their blocks."""
        interest = self._slots.interest[layer, batch.rows]
        self._ops.update_interest(interest, choice.candidates, choice.candidate_wishes, sequences, KEPT)
        if not batch.consecutive:  # then `interest` is a copy
            self._slots.interest[layer, batch.rows] = interest

    def fetch(self, batch: Batch, layer: int, blocks: Tensor, absent: Tensor) -> int:
        """Give slots to the absent ones of chosen blocks (both [B, H, N]) now; returns the bytes copied."""
        worth = self._slots.worth(layer, batch.rows, self._always_blocks(batch.closed))
        moves = propose_wanted(worth, blocks, absent, self._slots.content[layer, batch.rows])
        return self._transfers.copy_now(layer, moves._replace(row=batch.index[moves.row]))

    def give_slots(self, closed: list[tuple[int, int]]) -> None:
        """Give slots to blocks just closed, as (row, block): they are recent, and so chosen in the next step."""
        if not closed:
            return
        layers, slots = self._store.num_layers, self._slots
        rows, blocks = torch.tensor(closed, device=self._store.device).T
        layer, row = torch.arange(layers, device=rows.device).repeat_interleave(len(closed)), rows.repeat(layers)
        block, content = blocks.repeat(layers), slots.content[layer, row]
        worth = slots.worth(layer, row, self._always_blocks(block + 1))
        here = block[:, None, None].expand(-1, content.shape[1], 1)
        self._copy_later(layer, row, propose_wanted(worth, here, here >= 0, content))

    def recall(self, batch: Batch, seen: Tensor) -> tuple[int, int]:
        """Recall in the layers and sequences that are due; returns how many these are, and the bytes to be copied.

        seen: int64 [L, 2, B], blocks that the step's layers chose, and absent ones among them.
        """
        ablation = self._config.ablation
        chosen, far = self._store.ranks.sum(seen.transpose(0, 1).contiguous())
        steps = progress(far, chosen, ablation.recall_target, ablation.recall_interval)
        so_far = self._progress[:, batch.rows] + steps
        due = so_far >= 1
        self._progress[:, batch.rows] = so_far.masked_fill(due, 0)
        layer, sequence = torch.nonzero(due, as_tuple=True)
        if not layer.numel():
            return 0, 0
        row = batch.index[sequence]
        end = (batch.closed + (batch.fill + 1 == self._slots.block_size))[sequence]
        return layer.numel(), self._copy_later(layer, row, self._proposed(layer, row, end))

    def _proposed(self, layer: Tensor, row: Tensor, closed: Tensor) -> Moves:
        """What would be recalled in layers of rows with `closed` blocks, int64 [n] each; a move's row is one of n."""
        slots = self._slots
        block, end = torch.arange(slots.interest.shape[-1], device=closed.device), closed[:, None, None]
        interest = slots.interest[layer, row].masked_fill(block >= end, -torch.inf)
        newest = block == end - 1  # it may just have been given a slot
        worth = slots.worth(layer, row, self._always_blocks(closed) | newest)
        return propose_interesting(interest, slots.resident(layer, row), worth, self._most)

    def _copy_later(self, layer: Tensor, row: Tensor, moves: Moves) -> int:
        """Queue moves whose rows are pairs of a layer and a row; returns the bytes to be copied."""
        return self._transfers.copy_later(layer[moves.row], moves._replace(row=row[moves.row]))

    def _always_blocks(self, closed: Tensor) -> Tensor:
        """Sink and recent blocks, bool [n, 1, NB], where sequences have `closed` blocks."""
        blocks = torch.arange(self._slots.interest.shape[-1], device=closed.device)
        closed = closed[:, None, None]
        return (blocks < self._config.sink_blocks) | (
            (blocks >= closed - self._config.recent_blocks) & (blocks < closed)
        )


def propose_wanted(worth: Tensor, chosen: Tensor, absent: Tensor, content: Tensor) -> Moves:
    """Moves for the absent blocks of a choice, the most important first, wherever a slot may be emptied.

    worth: float32 [B, H, S], of the slots.   chosen: int64 [B, H, N].   absent: bool [B, H, N].
    content: int64 [B, H, S]; the present ones of the chosen blocks stay in their slots.
    """
    present = chosen.masked_fill(absent, -1)
    stay = (content[..., None] == present[..., None, :]).any(-1) & (content >= 0)
    order = absent.to(torch.int8).argsort(stable=True, dim=-1, descending=True)
    first = absent.gather(-1, order)
    return _matched(torch.where(first, torch.inf, -torch.inf), chosen.gather(-1, order), worth.masked_fill(stay, FULL))


def propose_interesting(interest: Tensor, resident: Tensor, worth: Tensor, most: int) -> Moves:
    """Moves of at most `most` blocks per KV head, where an absent block interests more than one that has a slot.

    interest: float32 [B, H, NB], -inf for what may not come.   resident: bool [B, H, NB].   worth: float32 [B, H, S].
    """
    wanted = interest.masked_fill(resident, -torch.inf)
    best = wanted.topk(min(most, wanted.shape[-1]))
    return _matched(best.values, best.indices, torch.where(worth > 0, worth * MARGIN, worth))


def _matched(wanted: Tensor, blocks: Tensor, worth: Tensor) -> Moves:
    """The most wanted block into the slot of least worth, the next into the next, as long as it is wanted more.

    wanted, blocks: [B, H, N], most wanted first.   worth: [B, H, S], FREE where a slot is empty, FULL where its block
        stays.
    """
    count = min(wanted.shape[-1], worth.shape[-1])
    least = worth.topk(count, largest=False)
    row, head, n = torch.nonzero((wanted[..., :count] > least.values) & (least.values < FULL), as_tuple=True)
    return Moves(row, head, least.indices[row, head, n], blocks[row, head, n])


def progress(far: Tensor, chosen: Tensor, share: float | None, interval: int) -> Tensor:
    """How much of the way to its next recall a step brings a layer, for each sequence; it recalls at 1.

    far, chosen: int64 [L, B], absent and all chosen blocks of the step.   With a part `share` of them absent it takes
    `interval` steps, with twice that part half as many; without `share` always so many. An interval of 0 is never.
    """
    if interval == 0 or share is None:
        return torch.full_like(far, 1 / interval if interval else 0.0, dtype=torch.float32)
    return far / (chosen * (share * interval)).clamp(min=1e-9)


def first_residents(mass: Tensor, count: int, sink: int, recent: int) -> Tensor:
    """The blocks that get slots after a prompt, most important first.

    mass: [H, NB], attention that the last prompt positions gave to each block.   Returns int64 [H, min(count, NB)].
    """
    ordered = mass.clone()
    ordered[:, :sink] = torch.inf
    ordered[:, max(0, ordered.shape[-1] - recent) :] = torch.inf
    return ordered.topk(min(count, ordered.shape[-1])).indices
