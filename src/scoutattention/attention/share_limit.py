"""The CPU share limit: how much a far block must be wished for, so that the CPU's share stays below a limit."""

import torch
from torch import Tensor

from ..cache.batch import Batch
from ..cache.store import KVStore
from ..config import ScoutConfig

LOWEST = 2.0**-8
"""Where the threshold begins, as a part of the highest it can be: the wish of a head that wants its budget evenly."""


class CpuShareLimit:
    """The wish threshold of each sequence: what an absent block must be wished for to be attended to.

    The threshold rises while the CPU share is above the limit, and falls while the share is below. `Ops.follow_shares`
    moves the threshold at the end of a step.

    limit: the largest CPU share, or None for no limit.   bounds: the lowest and the highest threshold.
    always: the number of sink and recent blocks, which need no wish. They are the first blocks of a choice.
    thresholds: float32 [R], 0 where there is no limit.
    """

    def __init__(self, config: ScoutConfig, store: KVStore) -> None:
        self.limit = config.max_cpu_share if config.ablation.on_miss == "compute" else None
        self.always = config.sink_blocks + config.recent_blocks
        highest = 1 / max(1, config.budget_blocks or 1)
        self.bounds = LOWEST * highest, highest
        threshold = torch.zeros(1, store.num_rows, device=store.device)
        store.follow(threshold, fresh=0.0 if self.limit is None else self.bounds[0])
        self.thresholds = threshold[0]

    def threshold(self, batch: Batch) -> Tensor:
        """Of a step's sequences, float32 [B]."""
        return self.thresholds[batch.rows]
