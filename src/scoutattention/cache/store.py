"""The one object through which attention sees the cache: host pages, device slots, and the open blocks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.ops import Ops
from ..runtime.pinned import SideStream
from ..runtime.ranks import ALONE, Ranks
from ..types import BlockList, Listing
from .pages import Pages
from .pool import BlockPool
from .slots import Slots
from .transfers import PARTS, Transfers

GRAIN = 64
"""Blocks by which a step's tables grow where steps are captured: a new width is a new graph."""


@dataclass(frozen=True)
class StepView:
    """The batch as one decode step sees it: sequences in rows 0 to B - 1, each about to append one token.

    closed: int64 [B], closed blocks.   fill: int64 [B], tokens in the open block before this step; both on the device,
    in memory that every step of as many sequences has.
    counts: `closed`, for the host.   width: so many blocks have room in a table of the step, at least the most closed.
    """

    batch: int
    closed: Tensor
    fill: Tensor
    counts: tuple[int, ...]
    width: int


class KVStore:
    """Keys and values of the running sequences.

    With `slots`, closed blocks live in host pages, some have device copies, and open blocks are in the device's pool.
    Without, there is one pool: every page is on the device, all blocks are resident, and nothing is ever copied.
    Packed pages that are on the device have slots beside them for the open blocks alone.

    resident: every page is on the device.   ranks: who holds the other KV heads.   transfers: what fills the slots.
    """

    def __init__(
        self,
        pages: Pages,
        slots: Slots | None,
        block_size: int,
        ops: Ops,
        *,
        resident: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        rows = pages.table.shape[0]
        self.pages = pages
        self.slots = slots
        self.resident = resident or slots is None
        self.block_size = block_size
        self.ranks = ranks
        self.device = ops.device
        self._captured = ops.deferred
        self._ops = ops
        self.side = SideStream(ops.device, marks=PARTS)
        self.transfers = None if slots is None else Transfers(pages, slots, self.side, ops)
        self.trusted = torch.ones((pages.pool.k.shape[0], rows), dtype=torch.bool)  # [L, R], see `trust`
        self._followers: list[tuple[Tensor, Tensor | float]] = []
        self.follow(self.trusted, fresh=True)
        self.closed = [0] * rows
        self.fill = [0] * rows
        # Of each row: closed blocks, tokens in the open block, the open block's entry.
        self._now = torch.zeros((3, rows), dtype=torch.int64, device=self.device)
        self.view = self._view(0)
        self._every_page: BlockList | None = None  # without slots, what every layer of a step attends to

    @property
    def near_pool(self) -> BlockPool:
        """The pool that the device attends to."""
        pool = self.pages.pool if self.slots is None else self.slots.pool
        assert isinstance(pool, BlockPool)  # the plan gives packed pages slots
        return pool

    def cache_bytes(self, batch: int) -> tuple[int, int]:
        """Bytes of the blocks, open ones too, of rows 0 to batch - 1: all of them, and those that the device holds."""
        closed = self.closed[:batch]
        whole = sum(closed) * self.pages.pool.entry_bytes + batch * self.near_pool.entry_bytes
        if self.slots is None or self.resident:
            return whole, whole
        held = [1 + min(count, quota) for count, quota in zip(closed, self.slots.quota, strict=False)]
        return whole, sum(held) * self.near_pool.entry_bytes

    def admit(self, row: int, num_blocks: int, quota: int) -> None:
        """Reserve pages for `num_blocks` blocks, and `quota` slots beside the open block's, for an empty sequence."""
        self.pages.admit(row, num_blocks)
        if self.slots is not None:
            self.slots.admit(row, quota)
        self.closed[row] = self.fill[row] = 0
        for state, fresh in self._followers:
            state[:, row] = fresh

    def release(self, row: int) -> None:
        """Forget the sequence of a row."""
        if self.transfers is not None:
            self.transfers.send()  # what a step that was broken off left
        self.side.join()  # or a prompt
        self.pages.release(row)
        if self.slots is not None:
            self.slots.release(row)

    def move(self, source: int, target: int) -> None:
        """Let row `target` (released) take over the sequence of row `source`."""
        self.pages.move(source, target)
        if self.slots is not None:
            self.slots.move(source, target)
        self.closed[target], self.fill[target] = self.closed[source], self.fill[source]
        for state, _ in self._followers:
            state[:, target] = state[:, source]

    def write_prompt(self, layer: int, row: int, k: Tensor, v: Tensor) -> None:
        """Store a whole prompt's keys and values of one layer, [T, H, D]: full blocks closed, the rest open."""
        full, size = k.shape[0] // self.block_size, self.block_size
        blocks = (full, size, *k.shape[1:])
        closed_k, closed_v = (t[: full * size].reshape(blocks).transpose(1, 2) for t in (k, v))
        with self.side.after(k, v):
            self.pages.write_prompt(layer, row, closed_k, closed_v)
        rest = k.shape[0] - full * size
        if rest:
            entry, pool = self._open_entry(row, full), self.near_pool
            pool.k[layer, entry, :, :rest] = k[full * size :].transpose(0, 1)
            pool.v[layer, entry, :, :rest] = v[full * size :].transpose(0, 1)

    def finish_prompt(self, row: int, num_tokens: int) -> None:
        """Declare a prompt of `num_tokens` stored in every layer."""
        self.side.join()
        self.closed[row], self.fill[row] = divmod(num_tokens, self.block_size)

    def follow(self, state: Tensor, fresh: Tensor | float) -> None:
        """Move what is kept for each row, a tensor [L, R, ...], whenever a row moves.   fresh: what rows begin with."""
        self._followers.append((state, fresh))

    def trust(self, layer: int, row: int, trusted: bool) -> None:
        """Say whether scouts of a layer are good enough for the sequence in a row; they are until this is called."""
        self.trusted[layer, row] = trusted

    def plan_step(self, batch: int) -> StepView:
        """Plan one decode step of the sequences in rows 0 to batch - 1, each of which appends one token."""
        self.view = self._view(batch)
        entries = [self._open_entry(row, self.closed[row]) for row in range(batch)]
        self._now[:, :batch] = torch.tensor([self.closed[:batch], self.fill[:batch], entries])
        return self.view

    def begin_step(self) -> None:
        """Make ready for what was planned; on the device, and from what is there."""
        closed, fill, _ = self._now[:, : self.view.batch]
        if self.slots is None:
            blocks = torch.arange(self.view.width, device=self.device).expand(self.view.batch, self.heads, -1)
            self._every_page = self.near_pages(blocks, blocks < closed[:, None, None])
        else:
            self.slots.near_length[:, : self.view.batch, :, 0] = (fill + 1)[:, None]

    def append(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Add one token's keys and values to the open blocks.   k, v: [B, H, D]."""
        _, fill, entry = self._now[:, : self.view.batch]
        self._ops.append(k, v, (self.near_pool.k[layer], self.near_pool.v[layer]), entry, fill)

    def near(self, layer: int) -> BlockList:
        """Every resident block, and the open one."""
        if self.slots is not None:
            return self.slots.near(layer, self.view.batch)
        assert self._every_page is not None
        return self._every_page

    def near_pages(self, chosen: Tensor, valid: Tensor) -> BlockList:
        """Some closed blocks where every page is resident, and the open one.   chosen, valid: [B, H, N]."""
        blocks = self.page_list(chosen, valid)
        opened = self._now[2, : self.view.batch, None, None].int().expand(-1, self.heads, 1)
        filled = (self.view.fill + 1).int()[:, None, None].expand(-1, self.heads, 1)
        return BlockList(torch.cat([opened, blocks.index], -1), torch.cat([filled, blocks.length], -1))

    def page_list(self, chosen: Tensor, wanted: Tensor) -> BlockList:
        """Host pages of closed blocks.   chosen: int64 [B, H, N].   wanted: bool [B, H, N], the others are skipped."""
        return self._ops.page_list(self.listing(chosen, wanted))

    def listing(self, chosen: Tensor, wanted: Tensor) -> Listing:
        """What `page_list` is made of."""
        return Listing(self.pages.table[: self.view.batch], chosen, wanted, self.block_size)

    def end_step(self) -> list[tuple[int, int]]:
        """Count the appended tokens, close the blocks that are full, and return them as (row, block)."""
        for row in range(self.view.batch):
            self.fill[row] += 1
        rows = [row for row in range(self.view.batch) if self.fill[row] == self.block_size]
        full = [(row, self.closed[row]) for row in rows]
        if full:
            pool, entries = self.near_pool, [self._open_entry(*one) for one in full]
            self.pages.close(full, pool.k[:, entries], pool.v[:, entries])
        for row in rows:
            self.closed[row], self.fill[row] = self.closed[row] + 1, 0
        return full

    def _open_entry(self, row: int, block: int) -> int:
        return self.pages.page(row, block) if self.slots is None else self.slots.open_entry(row)

    def _view(self, batch: int) -> StepView:
        closed, fill, _ = self._now[:, :batch]
        counts = tuple(self.closed[:batch])
        width = max(counts, default=0)
        if self._captured:  # room for the next block too, or a graph would last no longer than the open one
            width = (width // GRAIN + 1) * GRAIN
        return StepView(batch, closed, fill, counts, min(width, self.pages.table.shape[1]))

    @property
    def heads(self) -> int:
        """KV heads."""
        return self.pages.pool.k.shape[2]
