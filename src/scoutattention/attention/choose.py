"""Chooses the closed blocks that a layer attends to, within the budget."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from ..cache.batch import Batch
from ..cache.digests.stages import Stages
from ..config import ScoutConfig
from ..kernels.requests import Preference


class Choice(NamedTuple):
    """Closed blocks that queries want, and how much.

    picks: int64 [B, H, N], places of the chosen blocks among the candidates, or None, where they are the first N.
    wishes: float32 [B, H, N], the part of its attention that a KV head would give to each chosen block, as far as the
        digests tell.
    closed: int64 [B], blocks that each sequence has: those from there on are none.
    candidates: int64 [B, H, C], blocks that were wanted most, or from which was chosen.
    candidate_wishes: float32 [B, H, C], for these.
    pages: int32 [B, H, C], of the candidates, or None where nobody has looked.
    """

    picks: Tensor | None
    wishes: Tensor
    closed: Tensor
    candidates: Tensor
    candidate_wishes: Tensor
    pages: Tensor | None = None

    @property
    def blocks(self) -> Tensor:
        """The chosen blocks, int64 [B, H, N]: sink and recent blocks, then the others, most wanted first."""
        if self.picks is None:
            return self.candidates[..., : self.wishes.shape[-1]]
        return self.candidates.gather(-1, self.picks)

    @property
    def valid(self) -> Tensor:
        """Which of the blocks exist, bool [B, H, N]: not all where a sequence has fewer than the budget."""
        return self.blocks < self.closed[:, None, None]


class Chooser(Protocol):
    """Chooses blocks for queries."""

    def prepare(self, batch: Batch) -> None:
        """Called once for every step, before its layers run."""
        ...

    def takes_all(self, batch: Batch) -> bool:
        """Whether every block of the sequences will be chosen, whatever the queries are."""
        ...

    def scan(self, layer: int, q: Tensor, batch: Batch, closed: Tensor | None = None) -> Choice:
        """What queries q [B, H, G, D] want of `layer`, found by a look at every block.

        closed: int64 [B], blocks to look at of each sequence; none of a sequence gives any blocks. None is all.
        """
        ...

    def judge(
        self, layer: int, q: Tensor, batch: Batch, candidates: Tensor | None = None, pages: Tensor | None = None
    ) -> Choice:
        """The candidates, int64 [B, H, C], that queries want of `layer`; without candidates a scan finds them.

        pages: int32 [B, H, C], of the candidates, where they are known.
        """
        ...


class TopChooser(Chooser):
    """Chooses the blocks that the digests score highest, sink and recent blocks before all others.

    A scan scores the cheap digests of all blocks, and a few times the budget are candidates. Only these are judged by
    the precise digests.

    The query heads of a KV head share a choice. With "mean" pooling each head's scores go through a softmax over the
    blocks, and the mean over the heads orders the blocks, so that one head's large scores do not silence the others.
    With "max" the largest score of any head goes through the softmax, as published (arXiv 2603.27138).

    digests: of all pages; the chooser alone reads them.
    """

    def __init__(self, config: ScoutConfig, digests: Stages, table: Tensor) -> None:
        """`table`: int32 [R, NB], the page of each block of each row."""
        self.digests = digests
        self._budget = config.budget_blocks
        self._candidates = config.candidate_blocks
        self._always = (config.sink_blocks, config.recent_blocks)
        self._largest = config.ablation.pooling == "max"
        self._table = table
        self._listed: tuple[Batch, _Listed] | None = None

    @override
    def prepare(self, batch: Batch) -> None:
        pass

    @override
    def takes_all(self, batch: Batch) -> bool:
        return self._budget is None or self._budget >= batch.width

    @override
    def scan(self, layer: int, q: Tensor, batch: Batch, closed: Tensor | None = None) -> Choice:
        heads = q.shape[1]
        if self.takes_all(batch):
            return every_block(batch, heads)
        assert self._candidates is not None
        closed = batch.closed if closed is None else closed
        how = Preference(min(self._candidates, batch.width), self._always, self._largest)
        top = self.digests.scan.top(layer, q, batch.rows, self._lists(batch, heads).pages, closed, how)
        return Choice(None, top.wishes[..., : self._budget], batch.closed, top.blocks, top.wishes)

    @override
    def judge(
        self, layer: int, q: Tensor, batch: Batch, candidates: Tensor | None = None, pages: Tensor | None = None
    ) -> Choice:
        heads = q.shape[1]
        if self.takes_all(batch):
            return every_block(batch, heads)
        assert self._budget is not None
        assert self._candidates is not None
        if candidates is None and 2 * self._candidates < batch.width:  # else judging all reads no more
            candidates = self.scan(layer, q, batch).candidates
        listed, closed, always = self._lists(batch, heads), batch.closed, self._always
        if candidates is None:
            pages = listed.pages
        else:  # the sink and recent blocks are the first of them, and what is none the last
            pages = listed.pages.gather(-1, candidates) if pages is None else pages
            closed, always = listed.judged, (sum(always), 0)
        how = Preference(self._budget, always, self._largest)
        picks, wishes, all_wishes = self.digests.judge.top(layer, q, batch.rows, pages, closed, how)
        return Choice(picks, wishes, batch.closed, listed.blocks if candidates is None else candidates, all_wishes)

    def _lists(self, batch: Batch, heads: int) -> "_Listed":
        """The tensors that all layers of a step share; made once for each step."""
        if self._listed is None or self._listed[0] is not batch:
            assert self._candidates is not None
            pages = self._table[batch.rows, None, : batch.width].expand(-1, heads, -1)
            judged = batch.closed.clamp(max=min(self._candidates, batch.width))
            self._listed = batch, _Listed(pages, judged, block_numbers(batch, heads))
        return self._listed[1]


class _Listed(NamedTuple):
    """What the layers of a step have in common.

    pages: int32 [B, H, NB], of all blocks, the same for every KV head.   judged: int64 [B], candidates that are judged
    of each sequence.   blocks: int64 [B, H, NB], the numbers of all blocks.
    """

    pages: Tensor
    judged: Tensor
    blocks: Tensor


def block_numbers(batch: Batch, heads: int) -> Tensor:
    """All blocks of every sequence and KV head, int64 [B, H, NB]."""
    return torch.arange(batch.width, device=batch.closed.device).expand(batch.size, heads, -1).contiguous()


def every_block(batch: Batch, heads: int) -> Choice:
    """All blocks, each wanted alike."""
    blocks = block_numbers(batch, heads)
    wishes = torch.full(blocks.shape, 1 / max(1, batch.width), device=blocks.device)
    return Choice(None, wishes, batch.closed, blocks, wishes)


class Wanted(NamedTuple):
    """A choice split by residence.

    blocks: int64 [B, H, N], of the choice.   attended, absent: bool [B, H, N], those that are attended to, and those of
    them that have no slot.
    """

    choice: Choice
    blocks: Tensor
    attended: Tensor
    absent: Tensor

    def of(self, rows: Tensor) -> "Wanted":
        """The same for some sequences, bool [B], alone."""
        mask = rows[:, None, None]
        return Wanted(self.choice, self.blocks, self.attended & mask, self.absent & mask)
