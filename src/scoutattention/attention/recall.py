"""Which absent blocks get slots, and which blocks leave: pure functions from hit history and residency to moves."""

import torch
from torch import Tensor

from ..cache.slots import PINNED, Moves


def propose_wanted(used: Tensor, wanted: Tensor, absent: Tensor, step: int) -> Moves:
    """Moves for the absent blocks of a choice; the least recently chosen slots leave first.

    used: int64 [B, H, S + 1], the step that last chose each slot.   wanted: int64 [B, H, N], most important first.
    absent: bool [B, H, N].   step: slots used in it stay.   A block finds no slot when all were used in this step.
    """
    order = used.argsort(dim=-1, stable=True)
    rank = absent.cumsum(-1) - 1
    slot = order.gather(-1, rank.clamp(0, used.shape[-1] - 1))
    free = used.gather(-1, slot) < step
    row, head, n = torch.nonzero(absent & free & (rank < used.shape[-1]), as_tuple=True)
    return Moves(row, head, slot[row, head, n], wanted[row, head, n])


def propose_closed(content: Tensor, used: Tensor, row: int, block: int, always: tuple[int, int]) -> Moves:
    """Moves that give a block which was just closed a slot in every KV head of one layer.

    content: int64 [H, S].   used: int64 [H, S + 1] of the block's row.   always: blocks below the first and from the
    second number on never leave. A head whose slots all hold such blocks gets no move.
    """
    held = (content >= 0) & ((content < always[0]) | (content >= always[1]))
    rank = used[:, :-1].masked_fill(held, PINNED)
    if rank.shape[-1] == 0:
        none = torch.zeros(0, dtype=torch.int64)
        return Moves(none, none, none, none)
    least, slot = rank.min(-1)
    head = torch.nonzero(least < PINNED)[:, 0]
    return Moves(torch.full_like(head, row), head, slot[head], torch.full_like(head, block))


def due_rows(lengths: Tensor, layer: int, interval: int) -> Tensor:
    """Which sequences recall in a layer after this step: bool, like `lengths`, int64 tokens of each sequence.

    Layers take turns, so that the link carries a steady trickle. The turn follows from the sequence's own length and
    not from the engine's clock, so that what is resident does not depend on the rest of the batch.
    """
    if interval == 0:
        return torch.zeros_like(lengths, dtype=torch.bool)
    return (lengths + layer) % interval == 0


def first_residents(mass: Tensor, count: int, sink: int, recent: int) -> Tensor:
    """The blocks that get slots after a prompt, most important first.

    mass: [H, NB], attention that the last prompt positions gave to each block.   Returns int64 [H, min(count, NB)].
    """
    ranked = mass.clone()
    ranked[:, :sink] = torch.inf
    ranked[:, max(0, ranked.shape[-1] - recent) :] = torch.inf
    return ranked.topk(min(count, ranked.shape[-1])).indices


def together(proposed: list[tuple[int, Moves]]) -> tuple[Tensor, Moves]:
    """Moves of several layers, to be carried out as one: the layer of each, int64 [M], and the moves."""
    layers, moves = zip(*proposed, strict=True)
    counts = torch.tensor([move.row.numel() for move in moves])
    return torch.tensor(layers).repeat_interleave(counts), Moves(
        *(torch.cat(part) for part in zip(*moves, strict=True))
    )
