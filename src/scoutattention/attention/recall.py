"""Recall: gives slots to absent blocks that have become important, in each layer as often as its CPU share asks for."""

import torch
from torch import Tensor

from ..cache.batch import Batch
from ..cache.slots import Moves, Slots
from ..cache.store import KVStore
from ..config import ScoutConfig
from ..kernels.ops import Ops
from .choose import Choice
from .recall_policy import KEPT, PART, progress, propose_interesting, propose_wanted


class Recall:
    """Keeps the state of the recall policy, and carries out the moves that it proposes."""

    def __init__(self, config: ScoutConfig, store: KVStore, slots: Slots, ops: Ops) -> None:
        assert store.transfers is not None
        self._config = config
        self._ops = ops
        self._store = store
        self._slots = slots
        self._transfers = store.transfers
        layers, rows = store.num_layers, store.num_rows
        self._progress = torch.zeros(layers, rows, device=store.device)  # to the next recall, see `progress`
        store.follow(self._progress, fresh=torch.arange(layers, device=store.device) / layers)  # so layers take turns
        self._most = slots.size if config.budget_blocks is None else max(1, config.budget_blocks // PART)

    def note(self, batch: Batch, layer: int, choice: Choice, sequences: Tensor) -> None:
        """Take the wishes of some sequences, bool [B], into the interest in their blocks."""
        interest = self._slots.interest[layer, batch.rows]
        self._ops.update_interest(interest, choice.all_wishes, sequences, KEPT)
        if not batch.consecutive:  # then `interest` is a copy
            self._slots.interest[layer, batch.rows] = interest

    def fetch(self, batch: Batch, layer: int, blocks: Tensor, absent: Tensor) -> int:
        """Give slots to the absent ones of chosen blocks (both [B, H, N]) now; returns the bytes copied."""
        worth = self._slots.worth(layer, batch.rows, self._always_blocks(batch.closed))
        moves = propose_wanted(worth, blocks, absent, self._slots.content[layer, batch.rows])
        return self._transfers.copy_now(layer, moves._replace(row=batch.index[moves.row]))

    def give_slots(self, closed: list[tuple[int, int]]) -> None:
        """Give slots to blocks just closed, as (row, block): they are recent, and so chosen in the next step."""
        if not closed:
            return
        layers, slots = self._store.num_layers, self._slots
        rows, blocks = torch.tensor(closed, device=self._store.device).T
        layer, row = torch.arange(layers, device=rows.device).repeat_interleave(len(closed)), rows.repeat(layers)
        block, content = blocks.repeat(layers), slots.content[layer, row]
        worth = slots.worth(layer, row, self._always_blocks(block + 1))
        here = block[:, None, None].expand(-1, content.shape[1], 1)
        self._copy_later(layer, row, propose_wanted(worth, here, here >= 0, content))

    def recall(self, batch: Batch, seen: Tensor) -> tuple[int, int]:
        """Recall in the layers and sequences that are due; returns how many these are, and the bytes to be copied.

        seen: int64 [L, 2, B], blocks that the step's layers chose, and absent ones among them.
        """
        ablation = self._config.ablation
        chosen, far = self._store.ranks.sum(seen.transpose(0, 1).contiguous())
        steps = progress(far, chosen, ablation.recall_target, ablation.recall_interval)
        so_far = self._progress[:, batch.rows] + steps
        due = so_far >= 1
        self._progress[:, batch.rows] = so_far.masked_fill(due, 0)
        layer, sequence = torch.nonzero(due, as_tuple=True)
        if not layer.numel():
            return 0, 0
        row = batch.index[sequence]
        end = (batch.closed + (batch.fill + 1 == self._slots.block_size))[sequence]
        return layer.numel(), self._copy_later(layer, row, self._proposed(layer, row, end))

    def _proposed(self, layer: Tensor, row: Tensor, closed: Tensor) -> Moves:
        """What would be recalled in layers of rows with `closed` blocks, int64 [n] each; a move's row is one of n."""
        slots = self._slots
        block, end = torch.arange(slots.interest.shape[-1], device=closed.device), closed[:, None, None]
        interest = slots.interest[layer, row].masked_fill(block >= end, -torch.inf)
        newest = block == end - 1  # it may just have been given a slot
        worth = slots.worth(layer, row, self._always_blocks(closed) | newest)
        return propose_interesting(interest, slots.resident(layer, row), worth, self._most)

    def _copy_later(self, layer: Tensor, row: Tensor, moves: Moves) -> int:
        """Queue moves whose rows are pairs of a layer and a row; returns the bytes to be copied."""
        return self._transfers.copy_later(layer[moves.row], moves._replace(row=row[moves.row]))

    def _always_blocks(self, closed: Tensor) -> Tensor:
        """Sink and recent blocks, bool [n, 1, NB], where sequences have `closed` blocks."""
        blocks = torch.arange(self._slots.interest.shape[-1], device=closed.device)
        closed = closed[:, None, None]
        return (blocks < self._config.sink_blocks) | (
            (blocks >= closed - self._config.recent_blocks) & (blocks < closed)
        )
