"""Slots of the device: a cache of blocks for each layer and KV head, and the copies that fill it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.ops import Ops
from ..kernels.reference_recall import Moves, give
from ..runtime.memory import CPU
from ..runtime.streams import SideStream
from ..shape import ModelShape
from ..types import BlockList, Copies, SlotTables
from .batch import Batch
from .pages import Pages
from .pool import BlockPool

PARTS = 4
"""Parts of the layers whose recalled blocks are waited for together."""
Index = int | slice | Tensor
"""Selects layers or rows."""


class Slots:
    """Device slots of the running sequences.

    A row holds one entry of the pool for its open block, and `quota` entries that any layer and head fills with blocks
    of its own choice.

    content, slot_of, interest, near_length, near_index: see `SlotTables`.
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
        self.pool = BlockPool(shape, block_size, capacity, "device_memory", device, scratch=True)
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

    def shrink(self, row: int, quota: int) -> None:
        """Give back a row's slots beyond the first `quota`, which are empty from now on."""
        slot_of = self.slot_of[:, row]
        slot_of.masked_fill_(slot_of >= quota, self.size)
        self.content[:, row, :, quota:] = -1
        self.near_length[:, row, :, 1 + quota :] = 0
        kept, given = self._taken[row][: 1 + quota], self._taken[row][1 + quota :]
        self.pool.give(given)
        self._taken[row] = kept
        self.quota[row] = self._quota[row] = quota

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

    @property
    def tables(self) -> SlotTables:
        """The tables of the slots."""
        return SlotTables(
            *(self.content, self.slot_of, self.interest, self.near_length),
            near_index=self.near_index,
            quota=self._quota,
        )

    def complete(self, batch: Batch) -> list[bool]:
        """Which sequences have every closed block in a slot, in all layers and heads: those that have slots for all.

        A prompt's blocks are given slots while there are any, and so is each block that closes later. A slot that is
        filled anew was not empty, or its row has slots to spare; so none of a sequence that fits loses its slot.
        """
        return [not count or count <= self.quota[row] for count, row in zip(batch.counts, batch.numbers, strict=True)]

    def resident(self, layer: Index, row: Index) -> Tensor:
        """Which blocks have a slot now: bool [n, H, NB].   layer, row: some rows of a layer, or layers of a row."""
        return self.slot_of[layer, row] != self.size

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


class Transfers:
    """Fills slots, from pages or from a prompt on the device."""

    def __init__(self, pages: Pages, slots: Slots, side: SideStream, ops: Ops) -> None:
        """`side`: the stream for what runs beside the layers; it has PARTS marks."""
        layers = slots.content.shape[0]
        self._parts = range(0, layers, -(-layers // PARTS))  # first layers
        self._pages = pages
        self._slots = slots
        self._side = side
        self._ops = ops
        self._listed: list[Copies] = []  # of all layers, then of each part
        k, v = pages.pool.k[0, 0, 0], pages.pool.v[0, 0, 0]
        self.head_bytes = k.nbytes + v.nbytes  # of one block
        self._from_prompt = ops.deferred and isinstance(pages.pool, BlockPool)

    def lists(self, most: int) -> tuple[Tensor, Tensor]:
        """New lists of what `start_copies` copies: pages, -1 for none, and entries, int64 [L, R, H, most] each."""
        layers, rows, heads, _ = self._slots.content.shape
        device = self._slots.content.device
        page = torch.full((layers, rows, heads, most), -1, device=device)
        entry = torch.zeros_like(page)
        layer = torch.arange(layers, device=device)[:, None, None, None].expand(page.shape).contiguous()
        head = torch.arange(heads, device=device)[:, None].expand(page.shape).contiguous()
        every = Copies(layer, page, entry, head)
        size = self._parts.step
        runs = [slice(None), *(slice(first, first + size) for first in self._parts)]
        self._listed = [Copies(*(each[run].flatten() for each in every)) for run in runs]
        return page, entry

    def fill(self, first: int, row: int, blocks: Tensor, prompt: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Give blocks of a prompt slots that are empty: int64 [N, H, n], of N layers from `first` on.

        prompt: keys and values of all whole blocks [NB, H, P, D] of each layer, from which a GPU copies them: pages are
        behind the link. Packed pages are read all the same, because a slot has what a page has.
        """
        _, heads, given = blocks.shape
        place = torch.arange(blocks.numel(), device=blocks.device)
        of = place // given
        layers = first + of // heads
        moves = Moves(torch.full_like(place, row), of % heads, place % given, blocks.flatten())
        if not self._from_prompt:
            self.copy_now(layers, moves)
            return
        give(self._slots.tables, layers, moves, self._slots.block_size, empty=True)
        entry = self._slots.near_index[row, 1 : 1 + given].long()
        head = torch.arange(heads, device=blocks.device)[:, None]
        for layer, (some, parts) in enumerate(zip(blocks, prompt, strict=True), first):
            for pool, part in zip((self._slots.pool.k, self._slots.pool.v), parts, strict=True):
                pool[layer, entry, head] = part[some, head]

    def copy_now(self, layers: Tensor, moves: Moves) -> None:
        """Give blocks slots that are empty, and copy them.   layers: int64 [n], of each move."""
        give(self._slots.tables, layers, moves, self._slots.block_size, empty=True)
        page = self._pages.table[moves.row, moves.block].long()
        self.copy(Copies(layers, page, self._slots.near_index[moves.row, 1 + moves.slot].long(), moves.head))

    def start_copies(self) -> None:
        """Start to copy the listed blocks on the second stream; each layer waits for them in `wait_for_copies`."""
        every, *parts = self._listed
        if not self._ops.deferred:
            self.copy(every)
            return
        with self._side.after():
            for part, copies in enumerate(parts):
                self.copy(copies)
                self._side.mark(part)

    def settle(self) -> None:
        """Copy the listed blocks now, so that no list names a slot that is to be given away."""
        if self._listed:
            self.copy(self._listed[0])
            self._listed[0].page.fill_(-1)

    def wait_for_copies(self, layer: int) -> None:
        """Let the device wait for the copies to a layer's slots, before it reads them."""
        if layer in self._parts:
            self._side.wait(self._parts.index(layer))

    def copy(self, copies: Copies) -> None:
        """Copy blocks from pages to entries of the slots' pool."""
        host, pool = self._pages.pool, self._slots.pool
        self._ops.copy_blocks((host.k, host.v), (pool.k, pool.v), copies)
