"""A limit on the CPU's share: of a choice's absent blocks, those with the lowest wishes are left out."""

import torch
from torch import Tensor

from ..cache.batch import Batch
from ..cache.store import KVStore
from ..config import ScoutConfig

LOWEST = 2.0**-8
"""Where the threshold begins, as a part of the highest it can be: the wish of a head that wants its budget evenly."""
GAIN = 0.5
"""How fast the threshold follows: by so many e-folds a step where the share is twice the limit."""


class CpuShareLimit:
    """The wish threshold of each sequence: what an absent block must be wished for to be attended to.

    The threshold rises while the CPU's share is above the limit, and falls while the share is below.

    always: so many first blocks of a choice, the sink and recent ones, are attended to in any case.
    """

    def __init__(self, config: ScoutConfig, store: KVStore) -> None:
        self._limit = config.max_cpu_share if config.ablation.on_miss == "compute" else None
        self._ranks = store.ranks
        self.always = config.sink_blocks + config.recent_blocks
        self._highest = 1 / max(1, config.budget_blocks or 1)
        self._threshold = torch.zeros(1, store.num_rows, device=store.device)
        store.follow(self._threshold, fresh=0.0 if self._limit is None else LOWEST * self._highest)

    def threshold(self, batch: Batch) -> Tensor:
        """Of a step's sequences, float32 [B]; 0 where there is no limit."""
        return self._threshold[0, batch.rows]

    def update(self, batch: Batch, far: Tensor, chosen: Tensor) -> None:
        """Take a step's absent and chosen blocks, int64 [B] each, into account."""
        if self._limit is None:
            return
        far, chosen = self._ranks.sum(torch.stack((far, chosen)))
        excess = far / chosen.clamp(min=1) / self._limit
        moved = adapted(self._threshold[0, batch.rows], excess)
        self._threshold[0, batch.rows] = moved.clamp(LOWEST * self._highest, self._highest)


def adapted(threshold: Tensor, excess: Tensor) -> Tensor:
    """The threshold after a step whose share was `excess` times the limit; both [B]."""
    return threshold * (GAIN * (excess.clamp(max=3) - 1)).exp()
