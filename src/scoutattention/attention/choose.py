"""Which closed blocks a layer attends to."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..cache.store import KVStore, StepView
from ..config import ScoutConfig
from ..kernels.ops import Ops


class Choice(NamedTuple):
    """Closed blocks, most important first.

    blocks: int64 [B, H, N].   closed: int64 [B], blocks that each sequence has: those from there on are none.
    wishes: float32 [B, H, NB], the part of its attention that a KV head would give to each block, chosen or not, as far
        as the digests tell; even where all blocks are chosen, and nobody asked them.
    """

    blocks: Tensor
    closed: Tensor
    wishes: Tensor

    @property
    def valid(self) -> Tensor:
        """Which of the blocks are any, bool [B, H, N]: not all where a sequence has fewer than the budget."""
        return self.blocks < self.closed[:, None, None]


class Chooser(Protocol):
    """Chooses blocks; told once per step which batch it chooses for."""

    def begin(self, view: StepView) -> None:
        """Plan for the batch of a step."""
        ...

    @property
    def takes_all(self) -> bool:
        """Whether every block of the step's sequences will be chosen, whatever the queries are."""
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

    def __init__(self, config: ScoutConfig, store: KVStore, ops: Ops) -> None:
        self._config = config
        self._store = store
        self._ops = ops
        self.begin(store.view)

    def begin(self, view: StepView) -> None:
        """See `Chooser.begin`."""
        self._closed = view.closed
        self._tables = self._store.pages.table[: view.batch, : view.width]
        budget = self._config.budget_blocks
        self._count = view.width if budget is None else min(budget, view.width)
        self._all: Choice | None = None

    @property
    def takes_all(self) -> bool:
        """See `Chooser.takes_all`."""
        return self._count == self._tables.shape[1]

    def choose(self, layer: int, q: Tensor) -> Choice:
        """See `Chooser.choose`."""
        if self.takes_all:
            self._all = self._all or self._every_block(q.shape[1])
            return self._all
        scores = self._store.pages.digests.score(layer, q, self._tables, self._closed)
        always = (self._config.sink_blocks, self._config.recent_blocks)
        largest = self._config.pooling == "max"
        blocks, wishes = self._ops.rank_blocks(scores, self._closed, self._count, always, largest=largest)
        return Choice(blocks, self._closed, wishes)

    def _every_block(self, heads: int) -> Choice:
        device = self._closed.device
        blocks = torch.arange(self._count, device=device).expand(len(self._closed), heads, -1).contiguous()
        wishes = torch.full(blocks.shape, 1 / max(1, self._count), device=device)
        return Choice(blocks, self._closed, wishes)
