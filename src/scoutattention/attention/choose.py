"""Which closed blocks a layer attends to."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..cache.store import KVStore, StepView
from ..config import ScoutConfig
from ..kernels.cpu import Workers


class Choice(NamedTuple):
    """Closed blocks, most important first.

    blocks: int64 [B, H, N].   valid: bool [B, H, N], false where a sequence has fewer blocks than the budget.
    """

    blocks: Tensor
    valid: Tensor


class Chooser(Protocol):
    """Chooses blocks; told once per step which batch it chooses for."""

    def begin(self, view: StepView) -> None:
        """Plan for the batch of a step."""
        ...

    def choose(self, layer: int, q: Tensor) -> Choice:
        """The blocks that queries q [B, H, G, D] want of `layer`."""
        ...


class MinMaxChooser:
    """Blocks by the upper bound of their keys' scores (Quest, arXiv 2406.10774, section 3.2).

    The bounds go through a softmax over the blocks, whose mean over the group's query heads ranks the blocks, so that
    one head's large scores do not silence the others. Sink and recent blocks come first.
    """

    def __init__(self, config: ScoutConfig, store: KVStore, workers: Workers, scale: float) -> None:
        self._config = config
        self._store = store
        self._workers = workers
        self._scale = scale
        self.begin(store.view)

    def begin(self, view: StepView) -> None:
        """See `Chooser.begin`."""
        config, blocks = self._config, torch.arange(view.max_closed)
        closed = view.closed[:, None]
        always = (blocks < config.sink_blocks) | (blocks >= closed - config.recent_blocks)
        self._closed = closed[:, None]
        self._beyond = (blocks >= closed)[:, None]  # [B, 1, NB]
        self._bonus = torch.where(always, 2.0, 0.0)[:, None].masked_fill(self._beyond, -torch.inf)
        self._tables = self._store.pages.table[: view.batch, : view.max_closed]
        budget = config.budget_blocks
        self._count = view.max_closed if budget is None else min(budget, view.max_closed)

    def choose(self, layer: int, q: Tensor) -> Choice:
        """See `Chooser.choose`."""
        B, H, _, _ = q.shape
        if self._count == self._bonus.shape[-1]:
            blocks = torch.arange(self._count).expand(B, H, -1)
        else:
            scores = self._workers.score_digests(q, self._store.pages.digests[layer], self._tables)
            weights = (scores * self._scale).masked_fill(self._beyond[:, None], -torch.inf).softmax(-1)
            blocks = (weights.mean(2) + self._bonus).topk(self._count).indices
        return Choice(blocks, blocks < self._closed)
