"""Recall: gives slots to absent blocks that have become important, in each layer as often as its CPU share asks for.

What is decided at the end of a step is decided on the device: `kernels/reference_recall.py` has the policy. `Recall`
keeps its state. A block's interest is the running mean of the wishes for the block.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..cache.batch import Batch
from ..cache.slots import Slots
from ..cache.store import KVStore
from ..config import ScoutConfig
from ..kernels.ops import Ops
from ..kernels.requests import InterestRequest
from ..types import (
    RecallRequest,
    ShareCounts,
    SharePolicy,
    ShareRequest,
    SplitChoice,
    SplitRequest,
    StepRows,
    WantedRequest,
)
from .choose import Choice
from .share_limit import CpuShareLimit
from .step import ScoutStep

KEPT = 0.85
"""Of a block's interest, what a step leaves of it; the rest is the step's wish."""
PART = 4
"""A recall moves at most one in so many of a KV head's budget, so that the link carries a steady trickle."""
MOST = 64
"""And at most so many blocks of a KV head."""


class Recall:
    """Keeps the state of the recall policy, and queues the recalls after a step."""

    def __init__(
        self, config: ScoutConfig, store: KVStore, slots: Slots, limit: CpuShareLimit, ops: Ops, *, guarded: bool
    ) -> None:
        """limit: what follows the same counts of a step.   guarded: whether there is a guard."""
        assert store.transfers is not None
        self._always = config.sink_blocks, config.recent_blocks
        self._guarded = guarded
        self._limit = limit
        interval = 0 if config.ablation.on_miss == "fetch" else config.ablation.recall_interval
        self._policy = SharePolicy(config.ablation.recall_target, interval, limit.limit, *limit.bounds)
        self._ops = ops
        self._store = store
        self._slots = slots
        self._transfers = store.transfers
        layers, rows = store.num_layers, store.num_rows
        self._progress = torch.zeros(layers, rows, device=store.device)  # to the next recall
        store.follow(self._progress, fresh=torch.arange(layers, device=store.device) / layers)  # so layers take turns
        most = min(MOST, slots.size if config.budget_blocks is None else max(1, config.budget_blocks // PART))
        self._lists = store.transfers.lists(1 + most)
        for state, fresh in zip(self._lists, (-1, 0), strict=True):
            store.follow(state, fresh)

    def note(self, batch: Batch, layer: int, choice: Choice, sequences: Tensor) -> None:
        """Take the wishes of some sequences, bool [B], into the interest in their blocks."""
        with self._interest(batch, layer) as interest:
            self._ops.update_interest(interest, choice.candidates, choice.candidate_wishes, sequences, KEPT)

    def split(self, batch: Batch, layer: int, choice: Choice, sequences: Tensor, what: SplitRequest) -> SplitChoice:
        """`note`, and the choice split as requested."""
        with self._interest(batch, layer) as interest:
            noting = InterestRequest(interest, choice.candidate_wishes, sequences, KEPT)
            return self._ops.split_and_note(what, noting)

    @contextmanager
    def _interest(self, batch: Batch, layer: int) -> Iterator[Tensor]:
        """A layer's interest in the blocks of a step's sequences, which may be changed inside."""
        interest = self._slots.interest[layer, batch.rows]
        yield interest
        if not batch.consecutive:  # then it is a copy
            self._slots.interest[layer, batch.rows] = interest

    def fetch(self, batch: Batch, layer: int, blocks: Tensor, absent: Tensor) -> None:
        """Give slots to the absent ones of a layer's chosen blocks (both [B, H, N]), and copy them now."""
        rows, fetched = StepRows(batch.index, batch.closed, batch.fill), self._counts[2]
        what = WantedRequest(
            *(self._slots.tables, layer, rows, blocks, absent, self._always, self._store.pages.table, fetched),
            size=self._store.block_size,
        )
        self._transfers.copy(self._ops.give_wanted(what))

    def finish(self, step: ScoutStep) -> None:
        """Give slots to the blocks that a step closed, and to absent ones where recall is due.

        The blocks are copied when the next step begins. Moves the wish thresholds too. Nothing is waited for.
        """
        store, batch, (chosen, recalls, moved) = self._store, step.batch, self._counts
        counted = ShareCounts(
            step.tally.counts, step.masks.true_query, step.masks.all_resident, self._guarded, totals=chosen
        )
        shares = store.ranks.sum(self._ops.count_shares(counted))
        due = self._ops.follow_shares(
            ShareRequest(shares, batch.index, self._progress, self._limit.thresholds, self._policy, recalls)
        )
        self._ops.recall(
            RecallRequest(
                self._slots.tables,
                *(
                    StepRows(batch.index, batch.closed, batch.fill),
                    due,
                    self._always,
                    store.pages.table,
                    self._lists,
                    moved,
                ),
                size=store.block_size,
            )
        )

    @property
    def _counts(self) -> tuple[Tensor, Tensor, Tensor]:
        counts = self._store.exchange.counts
        return counts[:3], counts[3], counts[4]


def first_residents(mass: Tensor, count: int, sink: int, recent: int) -> Tensor:
    """The blocks that get slots after a prompt, most important first.

    mass: [H, NB], attention that the last prompt positions gave to each block.   Returns int64 [H, min(count, NB)].
    """
    ordered = mass.clone()
    ordered[:, :sink] = torch.inf
    ordered[:, max(0, ordered.shape[-1] - recent) :] = torch.inf
    return ordered.topk(min(count, ordered.shape[-1])).indices
