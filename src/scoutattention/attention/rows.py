"""What each sequence of a step needs of each layer; decided once, before the layers run."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """Which sequences of a step, bool [L, B] (fits, roomy: [1, B]).

    scouted: have absent blocks and more blocks than the budget: a scout chooses ahead, the CPU attends ahead.
    true: the same, but their scouts are not to be trusted in this layer, so the true query does both; or they have
        absent blocks and choose them all, so that with the true query the result is exact.
    asked: the true query is asked for its choice.   noted: and recall goes by it.
    fits: have no more blocks than the budget.
    roomy: have every block in a slot, and more blocks than the budget: the true query chooses among the slots.
    The rest have every block in a slot and attend to them all.
    """

    scouted: Tensor
    true: Tensor
    asked: Tensor
    noted: Tensor
    fits: Tensor
    roomy: Tensor


@dataclass(frozen=True)
class Plan:
    """What a step's work is made of: the layers where any sequence is `scouted`, `true`, `asked`; any at all `roomy`.

    batch: sequences.   width: blocks of its tables.   near: entries that the device attends to.
    """

    batch: int
    width: int
    near: int
    scouted: tuple[bool, ...]
    true: tuple[bool, ...]
    asked: tuple[bool, ...]
    roomy: bool


def sort_rows(crowded: Tensor, fits: Tensor, ahead: Tensor, *, guarded: bool) -> Rows:
    """Sort a step's sequences.

    crowded: bool [B], have absent blocks.   fits: bool [B], see `Rows`.   ahead: bool [L, B], have trusted scouts.
    guarded: whether the true query's choice is compared with the scouts'.
    """
    scouted, true, roomy = crowded & ~fits & ahead, crowded & (fits | ~ahead), ~crowded & ~fits
    asked = true | roomy | (scouted & guarded)
    return Rows(scouted, true, asked, asked & ~fits, fits[None], roomy[None])


class RowTable:
    """The rows of every step, in one place on the device."""

    def __init__(self, layers: int, rows: int, device: torch.device) -> None:
        self._sizes = [layers, layers, layers, layers, 1, 1]
        self._masks = torch.zeros((sum(self._sizes), rows), dtype=torch.bool, device=device)

    def put(self, rows: Rows) -> Rows:
        """Copy what was decided on the host to the device."""
        here = self._masks[:, : rows.fits.shape[1]]
        here.copy_(torch.cat(rows))
        return Rows(*torch.split(here, self._sizes))
