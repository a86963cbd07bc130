"""Which closed blocks a layer attends to: what its queries want, within the budget."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from ..cache.batch import Batch
from ..cache.digests.base import Digests
from ..config import ScoutConfig
from ..kernels.ops import Ops
from ..types import TopBlocks


class Choice(NamedTuple):
    """Closed blocks that queries want, and how much.

    blocks: int64 [B, H, N]: sink and recent blocks, then the others, most wanted first.
    wishes: float32 [B, H, N], the part of its attention that a KV head would give to each, as far as the digests tell.
    closed: int64 [B], blocks that each sequence has: those from there on are none.
    all_wishes: float32 [B, H, NB], of every block, chosen or not.
    """

    blocks: Tensor
    wishes: Tensor
    closed: Tensor
    all_wishes: Tensor

    @property
    def valid(self) -> Tensor:
        """Which of the blocks exist, bool [B, H, N]: not all where a sequence has fewer than the budget."""
        return self.blocks < self.closed[:, None, None]


class Chooser(Protocol):
    """Chooses blocks for queries."""

    def prepare(self, batch: Batch) -> None:
        """Told once of every step, before its layers run."""
        ...

    def takes_all(self, batch: Batch) -> bool:
        """Whether every block of the sequences will be chosen, whatever the queries are."""
        ...

    def choose(self, layer: int, q: Tensor, batch: Batch) -> Choice:
        """The blocks that queries q [B, H, G, D] want of `layer`."""
        ...


class TopChooser(Chooser):
    """Chooses the blocks that the digests score highest, sink and recent blocks before all others.

    The query heads of a KV head share a choice. With "mean" pooling each head's scores go through a softmax over the
    blocks, and the mean over the heads orders the blocks, so that one head's large scores do not silence the others.
    With "max" the largest score of any head goes through the softmax, as published (arXiv 2603.27138).

    digests: of all pages; the chooser alone reads them.
    """

    def __init__(self, config: ScoutConfig, digests: Digests, table: Tensor, ops: Ops) -> None:
        """`table`: int32 [R, NB], the page of each block of each row."""
        self.digests = digests
        self._budget = config.budget_blocks
        self._always = (config.sink_blocks, config.recent_blocks)
        self._largest = config.ablation.pooling == "max"
        self._table = table
        self._ops = ops

    @override
    def prepare(self, batch: Batch) -> None:
        pass

    @override
    def takes_all(self, batch: Batch) -> bool:
        return self._budget is None or self._budget >= batch.width

    @override
    def choose(self, layer: int, q: Tensor, batch: Batch) -> Choice:
        if self.takes_all(batch):
            return every_block(batch, q.shape[1])
        assert self._budget is not None
        scores = self.digests.score(layer, q, self._table[batch.rows, : batch.width])
        top: TopBlocks = self._ops.top_blocks(scores, batch.closed, self._budget, self._always, largest=self._largest)
        return Choice(top.blocks, top.wishes, batch.closed, top.all_wishes)


def every_block(batch: Batch, heads: int) -> Choice:
    """All blocks, each wanted alike."""
    device = batch.closed.device
    blocks = torch.arange(batch.width, device=device).expand(batch.size, heads, -1).contiguous()
    wishes = torch.full(blocks.shape, 1 / max(1, batch.width), device=device)
    return Choice(blocks, wishes, batch.closed, wishes)


class Wanted(NamedTuple):
    """A choice split by residence: which of its blocks are attended to, and which of these are absent.

    attended, absent: bool [B, H, N].
    """

    choice: Choice
    attended: Tensor
    absent: Tensor

    def of(self, rows: Tensor) -> "Wanted":
        """The same for some sequences, bool [B], alone."""
        mask = rows[:, None, None]
        return Wanted(self.choice, self.attended & mask, self.absent & mask)
