"""A step of `ScoutAttention`: which sequences need what in each layer, decided on the host before the layers run."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .step import Step


class Masks(NamedTuple):
    """Which sequences of a step, bool [L, B] (within_budget, all_resident: [1, B]).

    scouted: have absent blocks and more blocks than the budget: a scout chooses ahead, the CPU attends ahead.
    true_query: the same, but their scouts are not trusted in this layer, so the true query does both; or they have
        absent blocks and choose them all, so that with the true query the result is exact.
    asked: the true query is asked for its choice.   interesting: and recall goes by its wishes.
    within_budget: have no more blocks than the budget.
    all_resident: have every block in a slot, and more blocks than the budget: the true query chooses among the slots.
    The rest have every block in a slot and attend to them all.
    """

    scouted: Tensor
    true_query: Tensor
    asked: Tensor
    interesting: Tensor
    within_budget: Tensor
    all_resident: Tensor


@dataclass(frozen=True)
class Work:
    """What a step's work is made of: two steps of equal work queue the same kernels.

    sequences: of the step.   consecutive: whether their rows follow one another.   width: columns of its tables.
    near: entries that the device attends to.   scouted, true_query, asked: layers where any sequence is.
    all_resident: whether any sequence is.
    """

    sequences: int
    consecutive: bool
    width: int
    near: int
    scouted: tuple[bool, ...]
    true_query: tuple[bool, ...]
    asked: tuple[bool, ...]
    all_resident: bool


def sort_sequences(has_absent: Tensor, within_budget: Tensor, trusted: Tensor, *, guarded: bool) -> Masks:
    """Sort a step's sequences.

    has_absent: bool [B], have absent blocks.   within_budget: bool [B], see `Masks`.   trusted: bool [L, B], have
    scouts that are trusted.   guarded: whether the true query's choice is compared with the scouts'.
    """
    over = has_absent & ~within_budget
    scouted, true_query = over & trusted, has_absent & (within_budget | ~trusted)
    all_resident = ~has_absent & ~within_budget
    asked = true_query | all_resident | (scouted & guarded)
    return Masks(scouted, true_query, asked, asked & ~within_budget, within_budget[None], all_resident[None])


class Tally(NamedTuple):
    """Blocks that a step's layers attended to, and absent ones among them; every layer fills in its own.

    scouted, asked: int64 [L, 2, B, H], of scouts' choices and of true queries'.
    guarded: int64 [L, 2, B, H], whether the guard found anything, and blocks that it had attended to late.
    """

    scouted: Tensor
    asked: Tensor
    guarded: Tensor


@dataclass(frozen=True, eq=False)
class ScoutStep(Step):
    """A step with its work, and what its layers read and fill in.

    fetched: bytes that layers moved to the device themselves, see `Ablation.on_miss`.
    """

    work: Work
    masks: Masks
    tally: Tally
    fetched: list[int] = field(default_factory=list)


class StepMemory:
    """Where steps keep masks and tallies on the device: always the same memory, so that a graph can hold it."""

    def __init__(self, layers: int, rows: int, heads: int, device: torch.device) -> None:
        self._sizes = [layers, layers, layers, layers, 1, 1]
        self._masks = torch.zeros((sum(self._sizes), rows), dtype=torch.bool, device=device)
        self._counts = torch.zeros((3, layers, 2 * rows * heads), dtype=torch.int64, device=device)
        self._heads = heads

    def put(self, masks: Masks) -> Masks:
        """Copy what was decided on the host to the device."""
        here = self._masks[:, : masks.within_budget.shape[1]]
        here.copy_(torch.cat(masks))
        return Masks(*torch.split(here, self._sizes))

    def clear(self) -> None:
        """Set every tally to zero."""
        self._counts.zero_()

    def tally(self, sequences: int) -> Tally:
        """The tally of a step, with the numbers of the last one until they are set to zero."""
        shape = (2, sequences, self._heads)
        used = self._counts[:, :, : 2 * sequences * self._heads]
        return Tally(*used.view(*used.shape[:2], *shape))
