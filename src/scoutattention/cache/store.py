"""The one object through which attention sees the cache: host pages, device slots, and the open blocks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.ops import Ops
from ..kernels.requests import NearRequest
from ..runtime.ranks import ALONE, Ranks
from ..runtime.streams import SideStream
from ..types import BlockList, Copies, PageSelection
from .batch import Batch
from .exchange import StepExchange
from .pages import Pages
from .pool import BlockPool
from .prefix import NOTHING, Prefix
from .slots import PARTS, Slots, Transfers

GRAIN = 64
"""Blocks by which a step's tables grow where steps are captured: a new width is a new graph."""


MASKS = 5
"""Masks of sequences that the host decides for each layer, beside two for all layers; see `attention.step.Masks`."""


class KVStore:
    """Keys and values of the running sequences, each in a row of the tables.

    With `slots`, closed blocks live in host pages, some have device copies, and open blocks are in the device's pool.
    Without, there is one pool: every page is on the device, all blocks are resident, and nothing is ever copied.
    Packed pages that are on the device have slots beside them for the open blocks alone.

    resident: every page is on the device.   ranks: who holds the other KV heads.   transfers: what fills the slots.
    exchange: what the host and the device tell each other of a step.
    """

    def __init__(
        self, pages: Pages, slots: Slots | None, ops: Ops, *, resident: bool = False, ranks: Ranks = ALONE
    ) -> None:
        rows = pages.table.shape[0]
        self.pages = pages
        self.slots = slots
        self.resident = resident or slots is None
        self.ranks = ranks
        self._ops = ops
        self.side = SideStream(ops.device, marks=PARTS)
        self.transfers = None if slots is None else Transfers(pages, slots, self.side, ops)
        self.closed = [0] * rows
        self.fill = [0] * rows
        self.exchange = StepExchange(rows, MASKS * self.num_layers + 2, ops)
        self._followers: list[tuple[Tensor, Tensor | float]] = []
        self._of_prompts: list[Tensor] = []

    @property
    def device(self) -> torch.device:
        """Where slots and tables are."""
        return self._ops.device

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return self.pages.pool.k.shape[0]

    @property
    def heads(self) -> int:
        """KV heads of this rank."""
        return self.pages.pool.k.shape[2]

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self.pages.pool.k.shape[3]

    @property
    def num_rows(self) -> int:
        """Sequences that have room in the tables."""
        return len(self.closed)

    @property
    def near_pool(self) -> BlockPool:
        """The pool that the device attends to."""
        pool = self.pages.pool if self.slots is None else self.slots.pool
        assert isinstance(pool, BlockPool)  # the plan gives packed pages slots
        return pool

    def cache_bytes(self, sequences: int) -> tuple[int, int]:
        """Bytes of the blocks, open ones too, of the first rows: all of them, and those that the device holds."""
        closed = self.closed[:sequences]
        whole = sum(closed) * self.pages.pool.entry_bytes + sequences * self.near_pool.entry_bytes
        if self.slots is None or self.resident:
            return whole, whole
        held = [1 + min(count, quota) for count, quota in zip(closed, self.slots.quota, strict=False)]
        return whole, sum(held) * self.near_pool.entry_bytes

    def admit(self, row: int, num_blocks: int, quota: int, prefix: Prefix = NOTHING) -> None:
        """Reserve pages for `num_blocks` blocks, and `quota` slots beside the open block's, for a new sequence.

        prefix: the beginning of its prompt, which need not be read again.
        """
        self.exchange.holds = None
        self.pages.admit(row, num_blocks, prefix.pages)
        if self.slots is not None:
            self.slots.admit(row, quota)
        self.closed[row], self.fill[row] = len(prefix.pages), 0
        if prefix.lineage is not None:
            for state, kept in zip(self._of_prompts, prefix.lineage.state, strict=True):
                state[:, row] = kept.to(state.device)

    def state_of(self, row: int) -> list[Tensor]:
        """What the reading of a row's prompt has decided beside its blocks, in host memory: [L, ...] each."""
        return [state[:, row].to("cpu", copy=True) for state in self._of_prompts]

    def shrink(self, row: int, quota: int) -> None:
        """Take slots from the sequence of a row until it has `quota`; nothing is lost, since pages hold every block."""
        assert self.slots is not None
        assert self.transfers is not None
        self.exchange.holds = None
        if quota < self.slots.quota[row]:
            self.transfers.settle()
            self.slots.shrink(row, quota)

    def release(self, row: int) -> None:
        """Forget the sequence of a row."""
        self.exchange.holds = None
        self.side.join()  # what a step or a prompt that was broken off left
        self.pages.release(row)
        if self.slots is not None:
            self.slots.release(row)
        self._reset(row)

    def move(self, source: int, target: int) -> None:
        """Let row `target` (released) take over the sequence of row `source`."""
        self.exchange.holds = None
        self.pages.move(source, target)
        if self.slots is not None:
            self.slots.move(source, target)
        self.closed[target], self.fill[target] = self.closed[source], self.fill[source]
        for state, _ in self._followers:
            state[:, target] = state[:, source]
        self._reset(source)

    def _reset(self, row: int) -> None:
        for state, fresh in self._followers:
            state[:, row] = fresh

    def follow(self, state: Tensor, fresh: Tensor | float, *, of_prompt: bool = False) -> None:
        """Keep a tensor [L, R, ...] with the rows: moved when a sequence's row moves, reset when it has none any more.

        fresh: the values that a new sequence begins with: of each layer, or one matrix for all.
        of_prompt: whether reading a prompt decides it, for the whole sequence, and for those that begin like it.
        """
        if of_prompt:
            self._of_prompts.append(state)
        state[:] = (
            fresh if not isinstance(fresh, Tensor) or fresh.dim() > 1 else fresh.view(-1, *(1,) * (state.dim() - 1))
        )
        self._followers.append((state, fresh))

    def write_prompt(self, layer: int, row: int, k: Tensor, v: Tensor, block: int | None = None) -> None:
        """Store a prompt's keys and values of one layer, [T, H, D]: the rest behind whole blocks is left open.

        block: the first one that is written; None is the one behind the row's closed blocks.
        """
        first, end = self.closed[row] if block is None else block, len(k) // self.block_size * self.block_size
        with self.side.after(k, v):
            self.pages.write_prompt(layer, row, self.whole_blocks(k), self.whole_blocks(v), first)
        rest = len(k) - end
        if rest:
            entry, pool = self._open_entry(row, first + end // self.block_size), self.near_pool
            pool.k[layer, entry, :, :rest] = k[end:].transpose(0, 1)
            pool.v[layer, entry, :, :rest] = v[end:].transpose(0, 1)

    def digest_prompt(self, layer: int, row: int, k: Tensor, block: int) -> None:
        """Digest the whole blocks of a prompt's keys [T, H, D], from `block` on."""
        with self.side.after(k):
            self.pages.digest_prompt(layer, row, self.whole_blocks(k), block)

    def whole_blocks(self, x: Tensor) -> Tensor:
        """The whole blocks of keys or values [T, H, D]: [blocks, H, P, D]."""
        count = len(x) // self.block_size
        return x[: count * self.block_size].reshape(count, self.block_size, *x.shape[1:]).transpose(1, 2)

    def read_prefix(self, layer: int, row: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a row's closed blocks in one layer, on the device: [T, H, D] each, in the model's dtype.

        Packed pages are unpacked.
        """
        count, device = self.closed[row], self.device
        pool, near = self.pages.pool, self.near_pool.k
        if not count:
            return near.new_empty(0, self.heads, near.shape[-1]), near.new_empty(0, self.heads, near.shape[-1])
        k, v = torch.empty((2, 1, count, *near.shape[2:]), dtype=near.dtype, device=device)
        entry = torch.arange(count, device=device).repeat_interleave(self.heads)
        page = self.pages.table[row, :count].long().repeat_interleave(self.heads)
        head = torch.arange(self.heads, device=device).repeat(count)
        source = pool.k[layer : layer + 1], pool.v[layer : layer + 1]
        self._ops.copy_blocks(source, (k, v), Copies(torch.zeros_like(page), page, entry, head))
        k, v = (blocks[0].transpose(1, 2).flatten(0, 1) for blocks in (k, v))
        return k, v

    def finish_prompt(self, row: int, num_tokens: int) -> None:
        """Declare a prompt of `num_tokens` stored in every layer."""
        self.exchange.holds = None
        self.side.join()
        self.closed[row], self.fill[row] = divmod(num_tokens, self.block_size)

    def prepare(self, rows: Sequence[int], real: int | None = None) -> Batch:
        """The sequences of a decode step, in these rows; each will append one token. `exchange` is yet to be sent.

        real: how many are sequences; the rows of the others are free, and pad the batch. None is all.
        """
        size, real = len(rows), len(rows) if real is None else real
        padding = [0] * (size - real)
        counts = (*(self.closed[row] for row in rows[:real]), *padding)
        fills = [*(self.fill[row] for row in rows[:real]), *padding]
        entries = [self._open_entry(row, self.closed[row]) for row in rows[:real]]
        entries += [self.near_pool.capacity for _ in padding]  # the scratch entry
        self.exchange.set_rows(rows, counts, fills, entries)
        index, closed, fill, entry, *_ = self.exchange.rows(size)
        selected = _slice_of(rows)
        width = max(counts, default=0)
        if self._ops.deferred:  # room for the next block too, or a graph would last no longer than the open one
            width = (width // GRAIN + 1) * GRAIN
        batch = Batch(
            size=size,
            real=real,
            numbers=tuple(rows),
            rows=index if selected is None else selected,
            consecutive=selected is not None,
            index=index,
            closed=closed,
            fill=fill,
            entry=entry,
            counts=counts,
            full=tuple(place for place, count in enumerate(fills) if count + 1 == self.block_size),
            width=min(width, self.pages.table.shape[1]),
            near=1 + max((self.slots.quota[row] for row in rows[:real]), default=0) if self.slots is not None else 0,
        )
        self.exchange.holds = batch
        return batch

    def is_prepared(self, batch: Batch, rows: Sequence[int], real: int) -> bool:
        """Whether a batch is what `prepare` would give now, and `exchange` holds it: nothing has changed since."""
        return batch is self.exchange.holds and batch.numbers == tuple(rows) and batch.real == real

    def has_room(self, rows: Sequence[int]) -> bool:
        """Whether every sequence in these rows has a page for its open block."""
        return all(self.closed[row] < self.pages.reserved(row) for row in rows)

    def begin(self, batch: Batch) -> None:
        """Make ready for a step that was prepared; on the device, and from what is there."""
        if self.slots is not None:
            self.slots.near_length[..., 0][:, batch.rows] = (batch.fill + 1).int()[:, None]

    def append(self, layer: int, k: Tensor, v: Tensor, batch: Batch) -> None:
        """Add one token's keys and values to the open blocks.   k, v: [B, H, D]."""
        self._ops.append(k, v, (self.near_pool.k[layer], self.near_pool.v[layer]), batch.entry, batch.fill)

    def near_pages(self, candidates: Tensor, picks: Tensor | None, count: int, batch: Batch) -> BlockList:
        """The open block, and chosen closed blocks where every page is resident; see `NearRequest`."""
        table, opened = self.pages.table[batch.rows], (batch.entry, batch.fill)
        request = NearRequest(table, candidates, picks, count, batch.closed, opened, self.block_size)
        return self._ops.near_list(request)

    def open_blocks(self, batch: Batch) -> BlockList:
        """The open blocks, in `near_pool`."""
        places = (batch.entry.int(), (batch.fill + 1).int())
        return BlockList(*(each[:, None, None].expand(-1, self.heads, 1) for each in places))

    def select(self, blocks: Tensor, wanted: Tensor, batch: Batch) -> PageSelection:
        """Closed blocks, int64 [B, H, N], of which those of bool [B, H, N] are wanted."""
        return PageSelection(self.pages.table[batch.rows], blocks, wanted, self.block_size)

    def close(self, batch: Batch) -> None:
        """Close the blocks that the step has filled; on the device, and from what is there."""
        if batch.full:
            pool = self.near_pool
            self.pages.close(batch, (pool.k, pool.v), in_place=self.slots is None)

    def end(self, batch: Batch) -> None:
        """Count the appended tokens and the closed blocks."""
        self.exchange.holds = None
        for row in batch.numbers[: batch.real]:
            self.fill[row] += 1
            if self.fill[row] == self.block_size:
                self.closed[row], self.fill[row] = self.closed[row] + 1, 0

    def _open_entry(self, row: int, block: int) -> int:
        return self.pages.page(row, block) if self.slots is None else self.slots.open_entry(row)


def _slice_of(rows: Sequence[int]) -> slice | None:
    """The slice that selects these rows in their order, or None where there is none."""
    start = rows[0] if rows else 0
    return slice(start, start + len(rows)) if list(rows) == list(range(start, start + len(rows))) else None
