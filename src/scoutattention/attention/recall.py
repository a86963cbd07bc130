"""Moves blocks between the tiers while decoding: keeps the policies' state, and carries out what they propose."""

import torch
from torch import Tensor

from ..cache.slots import Moves, Slots
from ..cache.store import KVStore, StepView
from ..config import ScoutConfig
from ..kernels.ops import Ops
from .choose import Choice
from .recall_policy import KEPT, PART, progress, propose_interesting, propose_wanted

MOST_PRESSURE = 4.0
"""Recalls come at most so many times sooner because the CPU was waited for."""


class Mover:
    """Recalls blocks that drifted into interest, in a layer of a sequence when its share of absent blocks asks for it.

    recalls: how many this step made.
    """

    def __init__(self, config: ScoutConfig, store: KVStore, slots: Slots, ops: Ops) -> None:
        self._config = config
        self._ops = ops
        assert store.transfers is not None
        self._store = store
        self._transfers = store.transfers
        self._slots = slots
        layers, rows = store.trusted.shape
        self._progress = torch.zeros(layers, rows, device=store.device)  # to the next recall, see `recall.progress`
        store.follow(self._progress, fresh=torch.arange(layers, device=store.device) / layers)  # so layers take turns
        budget = config.budget_blocks
        self._most = slots.size if budget is None else max(1, budget // PART)
        size = (2, layers, rows, store.heads)
        self._seen = torch.zeros(size, dtype=torch.int64, device=store.device)  # blocks chosen, and absent
        self.plan(store.view)

    def plan(self, view: StepView) -> None:
        """Say which batch the next step is of."""
        self.recalls = 0
        self._batch = view.batch
        self._view = view

    def begin(self) -> None:
        """Start counting for the step."""
        self._seen.zero_()

    def note(self, layer: int, choice: Choice, rows: Tensor, counts: Tensor) -> None:
        """Take note of what some sequences, bool [B], want.   counts: int64 [2, B, H], chosen and absent."""
        self._ops.blend(self._slots.interest[layer, : self._batch], choice.wishes, rows, KEPT)
        self._seen[:, layer, : self._batch].add_(counts)

    def fetch(self, layer: int, blocks: Tensor, absent: Tensor) -> int:
        """Give slots to the absent ones of chosen blocks (both [B, H, N]) now; returns the bytes copied."""
        rows = slice(0, self._batch)
        worth = self._slots.worth(layer, rows, self._always_blocks(self._view.closed))
        return self._transfers.recall(layer, propose_wanted(worth, blocks, absent, self._slots.content[layer, rows]))

    def seat(self, closed: list[tuple[int, int]]) -> None:
        """Give slots to blocks just closed, as (row, block): they are recent, and so chosen in the next step."""
        if not closed:
            return
        layers, slots = self._progress.shape[0], self._slots
        rows, blocks = torch.tensor(closed, device=self._progress.device).T
        layer, row = torch.arange(layers, device=rows.device).repeat_interleave(len(closed)), rows.repeat(layers)
        block, content = blocks.repeat(layers), slots.content[layer, row]
        worth = slots.worth(layer, row, self._always_blocks(block + 1))
        here = block[:, None, None].expand(-1, content.shape[1], 1)
        moves = propose_wanted(worth, here, here >= 0, content)  # whose rows are pairs of a layer and a row
        self._transfers.recall_later(layer[moves.row], moves._replace(row=row[moves.row]))

    def recall(self, pressure: list[float]) -> int:
        """Recall in the layers and sequences that are due; returns the bytes to be copied.

        pressure: of each layer, how many times too long it waited for the CPU in this step; 1 where that is no concern.
        """
        config, rows = self._config, slice(0, self._batch)
        hurry = torch.tensor(pressure, device=self._seen.device).clamp(1, MOST_PRESSURE)[:, None]
        chosen, far = self._store.ranks.sum(self._seen[:, :, rows].sum(-1))
        steps = progress(far, chosen, config.cpu_share, config.recall_interval)
        self._progress[:, rows] += steps * hurry
        due = self._progress[:, rows] >= 1
        self._progress[:, rows] = self._progress[:, rows].masked_fill(due, 0)
        layer, row = torch.nonzero(due, as_tuple=True)
        self.recalls = layer.numel()
        if not self.recalls:
            return 0
        moves = self._proposed(layer, row)  # whose rows are those of `due`
        return self._transfers.recall_later(layer[moves.row], moves._replace(row=row[moves.row]))

    def _proposed(self, layer: Tensor, row: Tensor) -> Moves:
        """What would be recalled in layers of sequences, int64 [n] both; a move's row is one of these n."""
        slots, closed = self._slots, (self._view.closed + (self._view.fill + 1 == self._slots.block_size))[row]
        block, end = torch.arange(slots.interest.shape[-1], device=closed.device), closed[:, None, None]
        interest = slots.interest[layer, row].masked_fill(block >= end, -torch.inf)
        newest = block == end - 1  # it may just have been seated
        worth = slots.worth(layer, row, self._always_blocks(closed) | newest)
        return propose_interesting(interest, slots.resident(layer, row), worth, self._most)

    def _always_blocks(self, closed: Tensor) -> Tensor:
        """Sink and recent blocks, bool [B, 1, NB]."""
        blocks = torch.arange(self._slots.interest.shape[-1], device=closed.device)
        closed = closed[:, None, None]
        return (blocks < self._config.sink_blocks) | (
            (blocks >= closed - self._config.recent_blocks) & (blocks < closed)
        )
