"""Which closed blocks a layer attends to."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..cache.store import KVStore, StepView
from ..config import ScoutConfig

ALWAYS = 1e6
"""Added to the wish for sink and recent blocks: more than any wish."""


class Choice(NamedTuple):
    """Closed blocks, most important first.

    blocks: int64 [B, H, N].   valid: bool [B, H, N], false where a sequence has fewer blocks than the budget.
    wishes: float32 [B, H, NB], the part of its attention that a KV head would give to each block, chosen or not, as far
        as the digests tell; even where all blocks are chosen, and nobody asked them.
    """

    blocks: Tensor
    valid: Tensor
    wishes: Tensor


class Chooser(Protocol):
    """Chooses blocks; told once per step which batch it chooses for."""

    def begin(self, view: StepView) -> None:
        """Plan for the batch of a step."""
        ...

    def choose(self, layer: int, q: Tensor) -> Choice:
        """The blocks that queries q [B, H, G, D] want of `layer`."""
        ...


class TopChooser:
    """The blocks that the digests rank highest, sink and recent blocks before all others.

    A KV head's query heads share a choice. With "mean" pooling each head's scores go through a softmax over the blocks,
    and the mean over the heads ranks the blocks, so that one head's large scores do not silence the others. With "max"
    the largest score of any head goes through the softmax, as published (arXiv 2603.27138).
    """

    def __init__(self, config: ScoutConfig, store: KVStore) -> None:
        self._config = config
        self._store = store
        self.begin(store.view)

    def begin(self, view: StepView) -> None:
        """See `Chooser.begin`."""
        config, blocks = self._config, torch.arange(view.max_closed)
        closed = view.closed[:, None]
        always = (blocks < config.sink_blocks) | (blocks >= closed - config.recent_blocks)
        self._closed = closed[:, None]
        self._beyond = (blocks >= closed)[:, None]  # [B, 1, NB]
        self._bonus = torch.where(always, ALWAYS, 0.0)[:, None].masked_fill(self._beyond, -torch.inf)
        self._tables = self._store.pages.table[: view.batch, : view.max_closed]
        budget = config.budget_blocks
        self._count = view.max_closed if budget is None else min(budget, view.max_closed)

    def choose(self, layer: int, q: Tensor) -> Choice:
        """See `Chooser.choose`."""
        B, H, _, _ = q.shape
        if self._count == self._bonus.shape[-1]:
            blocks = torch.arange(self._count).expand(B, H, -1)
            wishes = torch.full(blocks.shape, 1 / max(1, self._count))
        else:
            wishes = self._pool(self._store.pages.digests.score(layer, q, self._tables))
            blocks = (wishes + self._bonus).topk(self._count).indices
        return Choice(blocks, blocks < self._closed, wishes)

    def _pool(self, scores: Tensor) -> Tensor:
        """What the heads of a group [B, H, G, N] want together, [B, H, N]."""
        if self._config.pooling == "max":
            return scores.amax(2).masked_fill(self._beyond, -torch.inf).softmax(-1)
        return scores.masked_fill(self._beyond[:, None], -torch.inf).softmax(-1).mean(2)
