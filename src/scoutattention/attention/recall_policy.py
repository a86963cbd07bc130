"""Which absent blocks get slots, which blocks leave, and when: pure functions of residency and of what was wished for.

A block's interest is the running mean of the wishes for it. It keeps more of the right blocks than the time of their
last choice does: docs/fidelity.md has the comparison.
"""

import torch
from torch import Tensor

from ..cache.slots import FULL, Moves

KEPT = 0.85
"""Of a block's interest, what a step leaves of it; the rest is the step's wish."""
MARGIN = 1.3
"""How many times the interest in what leaves the interest in what comes must be, so that equals do not swap."""
PART = 4
"""A recall moves at most one in so many of a KV head's budget, so that the link carries a steady trickle."""


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
    ranked = mass.clone()
    ranked[:, :sink] = torch.inf
    ranked[:, max(0, ranked.shape[-1] - recent) :] = torch.inf
    return ranked.topk(min(count, ranked.shape[-1])).indices
