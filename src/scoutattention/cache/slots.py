"""Slots of the device: a cache of blocks for each layer and KV head, and the copies that fill it."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.ops import Ops
from ..runtime.memory import CPU
from ..runtime.streams import SideStream
from ..shape import ModelShape
from ..types import BlockList, Copies
from .batch import Batch
from .pages import Pages
from .pool import BlockPool

PARTS = 4
"""Parts of the layers whose recalled blocks are waited for together."""
FREE = -1.0
"""Worth of an empty slot: the first to be filled."""
FULL = float("inf")
"""Worth of a position that is no slot of its row, or whose block stays: never filled."""
Index = int | slice | Tensor
"""Selects layers or rows."""


class Moves(NamedTuple):
    """Blocks of one layer that get slots; four int64 tensors [M]. No two moves share a slot."""

    row: Tensor
    head: Tensor
    slot: Tensor
    block: Tensor


class Slots:
    """Device slots of the running sequences.

    A row holds one entry of the pool for its open block, and `quota` entries that any layer and head fills with blocks
    of its own choice.

    content: int64 [L, R, H, S], the block in each slot, -1 where none.
    slot_of: int64 [L, R, H, NB], the inverse: the slot of each block, S where it is absent.
    interest: float32 [L, R, H, NB], how much each block was wished for lately, whether it has a slot or not.
    near_index: int32 [R, 1 + S] and near_length: int32 [L, R, H, 1 + S]: what the device attends to, the open block
        first.
    """

    def __init__(
        self,
        shape: ModelShape,
        block_size: int,
        capacity: int,
        rows: int,
        max_blocks: int,
        *,
        device: torch.device = CPU,
    ) -> None:
        layers, heads = shape.num_layers, shape.num_kv_heads
        self.pool = BlockPool(shape, block_size, capacity, "device_memory", device)
        self.size = max(0, min(capacity - 1, max_blocks))
        self.quota = [0] * rows
        self.block_size = block_size
        self.content = torch.full((layers, rows, heads, self.size), -1, device=device)
        self.slot_of = torch.full((layers, rows, heads, max_blocks), self.size, device=device)
        self.interest = torch.zeros((layers, rows, heads, max_blocks), device=device)
        self.near_index = torch.zeros((rows, 1 + self.size), dtype=torch.int32, device=device)
        self.near_length = torch.zeros((layers, rows, heads, 1 + self.size), dtype=torch.int32, device=device)
        self._taken: list[list[int]] = [[] for _ in range(rows)]
        self._quota = torch.zeros(rows, dtype=torch.int64, device=device)  # for the device

    def admit(self, row: int, quota: int) -> None:
        """Give a row its open block's entry and `quota` empty slots."""
        entries = self._taken[row] = self.pool.take(1 + quota)
        self.quota[row] = self._quota[row] = quota
        self.near_index[row, : 1 + quota] = torch.tensor(entries, dtype=torch.int32)
        self.near_length[:, row] = 0
        self.content[:, row] = -1
        self.slot_of[:, row] = self.size
        self.interest[:, row] = 0

    def release(self, row: int) -> None:
        """Give back every entry of a row."""
        self.pool.give(self._taken[row])
        self._taken[row] = []

    def move(self, source: int, target: int) -> None:
        """Let row `target` (released) take over the sequence of row `source`."""
        for state in (self.content, self.slot_of, self.interest, self.near_length):
            state[:, target] = state[:, source]
        self.near_index[target] = self.near_index[source]
        self.quota[target], self._quota[target] = self.quota[source], self._quota[source]
        self._taken[target], self._taken[source] = self._taken[source], []

    def complete(self, batch: Batch) -> Tensor:
        """Which sequences have every closed block in a slot, in all layers and heads: bool [B], on the host."""
        held = self.near_length[:, batch.rows, :, 1:].count_nonzero(-1)
        return (held == batch.closed[:, None]).all(-1).all(0).cpu()

    def resident(self, layer: Index, row: Index) -> Tensor:
        """Which blocks have a slot now: bool [n, H, NB]; see `worth`."""
        return self.slot_of[layer, row] != self.size

    def worth(self, layer: Index, row: Index, protected: Tensor) -> Tensor:
        """What emptying slots would lose: the interest in their blocks.

        layer, row: some rows of a layer, layers of a row, or int64 [n] both.   protected: bool [n or 1, 1, NB], blocks
        that stay.   Returns float32 [n, H, S], FREE for an empty slot, FULL for one that is not to be filled.
        """
        content = self.content[layer, row]
        held, block = content >= 0, content.clamp(min=0)
        interest = self.interest[layer, row].gather(-1, block)
        stays = protected.expand(*content.shape[:2], -1).gather(-1, block) & held
        own = torch.arange(self.size, device=content.device) < self._quota[row].reshape(-1, 1, 1)
        return interest.masked_fill(~held, FREE).masked_fill(stays | ~own, FULL)

    def open_entry(self, row: int) -> int:
        """The pool's entry that holds a row's open block."""
        return self._taken[row][0]

    def near(self, layer: int, batch: Batch) -> BlockList:
        """All resident blocks of a layer, and the open one first."""
        length = self.near_length[layer, batch.rows, :, : batch.near]
        return BlockList(self.near_index[batch.rows, None, : batch.near].expand(length.shape), length)

    def keep(self, slots: Tensor, near: BlockList, rows: Tensor) -> BlockList:
        """Of `near`, only the given slots and the open block, in the rows of bool [B, 1, 1]; the others keep all.

        slots: int64 [B, H, N], `size` where there is none.
        """
        sequences, heads, width = near.length.shape
        kept = torch.zeros((sequences, heads, 2 + self.size), dtype=torch.bool, device=slots.device)
        kept[..., 0] = True
        kept.scatter_(-1, 1 + slots, True)
        return BlockList(near.index, near.length * (kept[..., :width] | ~rows))

    def of_blocks(self, layer: int, batch: Batch) -> tuple[Tensor, int]:
        """The slot of each block, int64 [B, H, NB], and the number that means no slot."""
        return self.slot_of[layer, batch.rows], self.size

    def entries(self, moves: Moves) -> Tensor:
        """The pool's entries of slots, int64 [M]."""
        return self.near_index[moves.row, 1 + moves.slot].long()

    def fill(self, layer: Tensor, moves: Moves) -> None:
        """Say that blocks are in their slots, which were empty.   layer: int64 [M]."""
        row, head, slot, block = moves
        self.content[layer, row, head, slot] = block
        self.slot_of[layer, row, head, block] = slot
        self.near_length[layer, row, head, 1 + slot] = self.block_size

    def drop(self, layer: Tensor, row: Tensor, head: Tensor, slot: Tensor) -> None:
        """Empty slots, int64 [M] each; nothing is copied back: the host holds every block."""
        old = self.content[layer, row, head, slot]
        (held,) = torch.nonzero(old >= 0, as_tuple=True)
        self.slot_of[layer[held], row[held], head[held], old[held]] = self.size
        self.content[layer, row, head, slot] = -1
        self.near_length[layer, row, head, 1 + slot] = 0


class Transfers:
    """Fills slots from pages."""

    def __init__(self, pages: Pages, slots: Slots, side: SideStream, ops: Ops) -> None:
        """`side`: the stream for what runs beside the steps; it has PARTS marks."""
        layers = slots.content.shape[0]
        self._parts = range(0, layers, -(-layers // PARTS))  # first layers
        self._pages = pages
        self._slots = slots
        self._side = side
        self._ops = ops
        self._queued: list[tuple[Tensor, Moves]] = []  # with their layers
        k, v = pages.pool.k[0, 0, 0], pages.pool.v[0, 0, 0]
        self._head_bytes = k.nbytes + v.nbytes

    def copy_now(self, layer: int | Tensor, moves: Moves, *, empty: bool = False) -> int:
        """Give blocks slots, and return the bytes copied.  Between steps, or before a layer attends (`fetch`).

        layer: of all moves, or int64 [M].   empty: whether all of the slots are known to be.
        """
        layer = torch.full_like(moves.row, layer) if isinstance(layer, int) else layer
        self._assign(layer, moves, empty=empty)
        self._copy(self._copies(layer, moves))
        return moves.row.numel() * self._head_bytes

    def copy_later(self, layer: Tensor, moves: Moves) -> int:
        """Give blocks slots between steps, for int64 [M] layers; returns the bytes that `start_copies` will copy.

        No slot may be filled twice.
        """
        self._assign(layer, moves, empty=False)
        self._queued.append((layer, moves))
        return moves.row.numel() * self._head_bytes

    def start_copies(self) -> None:
        """Begin to copy blocks to the slots they were given, beside the next step.

        The layers of that step wait in `wait_for_copies`.
        """
        if not self._queued:
            return
        layers, moves = zip(*self._queued, strict=True)
        self._queued.clear()
        layer, order = torch.cat(layers).sort(stable=True)
        each = Moves(*(torch.cat(parts)[order] for parts in zip(*moves, strict=True)))
        ends = torch.tensor(self._parts[1:], device=layer.device)
        cuts = [0, *torch.searchsorted(layer, ends).tolist(), layer.numel()]
        with self._side.after(layer, *each):
            copies = self._copies(layer, each)
            for part, (start, end) in enumerate(pairwise(cuts)):
                if start < end:
                    self._copy(Copies(*(index[start:end] for index in copies)))
                    self._side.mark(part)
        self._side.join_unmarked()

    def wait_for_copies(self, layer: int) -> None:
        """Let the device wait for the copies to a layer's slots, before it reads them."""
        if layer in self._parts:
            self._side.wait(self._parts.index(layer))

    def _assign(self, layer: Tensor, moves: Moves, *, empty: bool) -> None:
        if not empty:
            self._slots.drop(layer, moves.row, moves.head, moves.slot)
        self._slots.fill(layer, moves)

    def _copies(self, layer: Tensor, moves: Moves) -> Copies:
        page = self._pages.table[moves.row, moves.block].long()
        return Copies(layer, page, self._slots.entries(moves), moves.head)

    def _copy(self, copies: Copies) -> None:
        host, pool = self._pages.pool, self._slots.pool
        self._ops.copy_blocks((host.k, host.v), (pool.k, pool.v), copies)
