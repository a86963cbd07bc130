"""Keeps the CPU's share below a limit: of the absent blocks of a choice, those least wished for are left out."""

import torch
from torch import Tensor

from ..cache.store import KVStore
from ..config import ScoutConfig

LOWEST = 2.0**-8
"""Where the least wish begins, as a part of the highest it can be: the wish of a head that wants its budget evenly."""
GAIN = 0.5
"""How fast the least wish follows: by so many e-folds a step where the share is twice the limit."""


class Thrift:
    """The least wish of each sequence: what an absent block must be wished for to be attended to.

    It rises while the CPU's share is above the limit, and falls while it is below.

    always: so many first blocks of a choice, the sink and recent ones, are attended to in any case.
    """

    def __init__(self, config: ScoutConfig, store: KVStore) -> None:
        self._limit = config.most_share if config.on_miss == "compute" else None
        self._ranks = store.ranks
        self.always = config.sink_blocks + config.recent_blocks
        self._even = 1 / max(1, config.budget_blocks or 1)
        self._least = torch.zeros(1, store.trusted.shape[1], device=store.device)
        store.follow(self._least, fresh=0.0 if self._limit is None else LOWEST * self._even)

    def least(self, batch: int) -> Tensor:
        """Of the first `batch` rows, float32 [B]; 0 where there is no limit."""
        return self._least[0, :batch]

    def learn(self, far: Tensor, chosen: Tensor) -> None:
        """Take note of a step's absent and chosen blocks, int64 [B] each."""
        if self._limit is not None:
            far, chosen = self._ranks.sum(torch.stack((far, chosen)))
            mine = self._least[0, : far.shape[0]]
            mine.copy_(adapted(mine, far / chosen.clamp(min=1) / self._limit).clamp(LOWEST * self._even, self._even))


def adapted(least: Tensor, excess: Tensor) -> Tensor:
    """The least wish after a step whose share was so many times the limit; both [B]."""
    return least * (GAIN * (excess.clamp(max=3) - 1)).exp()
