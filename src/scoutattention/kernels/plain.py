"""A decode step's attention in plain PyTorch, on any device: the definitions of every operation."""

import torch
from torch import Tensor
from typing_extensions import override

from ..runtime.packed import Blocks
from ..types import (
    BlockList,
    Copies,
    GuardFinding,
    GuardRequest,
    PageSelection,
    Partial,
    Pools,
    SplitChoice,
    SplitRequest,
    TopBlocks,
)
from . import reference
from .ops import Ops


class PlainOps(Ops):
    """The operations as `reference` and the functions of this file define them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.deferred = device.type != "cpu"

    @override
    def partial(self, q: Tensor, k: Blocks, v: Blocks, blocks: BlockList, scale: float) -> Partial:
        here = k.device  # blocks that the device does not hold are attended to where they are
        lists = BlockList(blocks.index.to(here), blocks.length.to(here))
        out, lse, _ = reference.partial(q.to(here), k, v, lists, scale)
        return Partial(out.to(q.device), lse.to(q.device))

    @override
    def append(self, k: Tensor, v: Tensor, pools: Pools, entry: Tensor, fill: Tensor) -> None:
        append(k, v, pools, entry, fill)

    @override
    def page_list(self, what: PageSelection) -> BlockList:
        return page_list(what)

    @override
    def stage_call(self, q: Tensor, what: PageSelection, to: tuple[Tensor, BlockList]) -> None:
        stage_call(q, what, to)

    @override
    def write_blocks(self, blocks: tuple[Tensor, Tensor], target: tuple[Blocks, Blocks], pages: Tensor) -> None:
        for new, pool in zip(blocks, target, strict=True):
            pool[pages.to(pool.device)] = new.to(pool.device)

    @override
    def copy_blocks(self, source: tuple[Blocks, Blocks], target: tuple[Tensor, Tensor], copies: Copies) -> None:
        layer, page, entry, head = copies
        for here, there in zip(source, target, strict=True):
            blocks = here[tuple(index.to(here.device) for index in (layer, page, head))]
            there[layer, entry, head] = blocks.to(there.dtype).to(there.device)

    @override
    def write_min_max(self, k: Tensor, digests: Tensor, pages: Tensor) -> None:
        reference.write_min_max(k, digests, pages)

    @override
    def write_key_codes(self, k: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor) -> None:
        reference.write_key_codes(k, codes, bounds, pages)

    @override
    def project(self, q: Tensor, basis: Tensor) -> Tensor:
        return reference.project(q, basis)

    @override
    def score_min_max(self, q: Tensor, digests: Tensor, pages: Tensor, closed: Tensor, scale: float) -> Tensor:
        return reference.score_min_max(q * scale, digests, _closed_pages(pages, closed))

    @override
    def score_key_codes(
        self, q: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor, closed: Tensor, scale: float
    ) -> Tensor:
        return reference.score_key_codes(q * scale, codes, bounds, _closed_pages(pages, closed))

    @override
    def top_blocks(
        self, scores: Tensor, closed: Tensor, count: int, always: tuple[int, int], *, largest: bool
    ) -> TopBlocks:
        return reference.top_blocks(scores, closed, count, always, largest=largest)

    @override
    def split_choice(self, what: SplitRequest) -> SplitChoice:
        return reference.split_choice(what)

    @override
    def update_interest(self, interest: Tensor, blocks: Tensor, wishes: Tensor, rows: Tensor, kept: float) -> None:
        reference.update_interest(interest, blocks, wishes, rows, kept)

    @override
    def find_late(self, what: GuardRequest) -> GuardFinding:
        return reference.find_late(what)

    @override
    def scout_error(self, far: Partial, near: Partial, q: Tensor, q_hat: Tensor) -> Tensor:
        return reference.scout_error(far, near, q, q_hat)

    @override
    def corrected(self, far: Partial, q: Tensor, q_hat: Tensor, scale: float) -> Partial:
        return reference.corrected(far, q, q_hat, scale)

    @override
    def merge(self, a: Partial, b: Partial, without: Tensor | None = None) -> Partial:
        return reference.merge(a if without is None else left_out(a, without), b)


def _closed_pages(pages: Tensor, closed: Tensor) -> Tensor:
    """Pages [B, H, N] with any valid page in place of those that are not to be looked at."""
    return pages.masked_fill(torch.arange(pages.shape[-1], device=pages.device) >= closed[:, None, None], 0)


def append(k: Tensor, v: Tensor, pools: Pools, entry: Tensor, fill: Tensor) -> None:
    """Write one token's keys and values of every sequence into one layer of a pool.

    k, v: [B, H, D].   entry, fill: int64 [B], the open block and the position in it.
    """
    for pool, new in zip(pools, (k, v), strict=True):
        pool.transpose(1, 2)[entry, fill] = new


def copy_blocks(source: Pools, target: Pools, page: Tensor, entry: Tensor, head: Tensor) -> None:
    """Copy single heads of blocks from one pool to another.

    page, entry, head: int64 [M]; head `head[m]` of block `page[m]` goes to the same head of block `entry[m]`. No two
    moves may have one target.
    """
    for here, there in zip(source, target, strict=True):
        there.index_put_((entry, head), here[page, head])


def page_list(what: PageSelection) -> BlockList:
    """Where blocks are, int32 [B, H, N] both."""
    table = what.table[:, None].expand(-1, what.blocks.shape[1], -1)
    return BlockList(table.gather(-1, what.blocks), what.wanted.int() * what.size)


def stage_call(q: Tensor, what: PageSelection, to: tuple[Tensor, BlockList]) -> None:
    """Write queries q [B, H, G, D], and where blocks are, to the host's memory: float32 and int32, contiguous."""
    for there, here in zip((to[0], *to[1]), (q, *page_list(what)), strict=True):
        there.copy_(here, non_blocking=True)


def left_out(partial: Partial, heads: Tensor) -> Partial:
    """A partial of no keys in some KV heads, bool [B, H], whatever it is there."""
    out = partial.out.masked_fill(heads[..., None, None], 0)
    return Partial(out, partial.lse.masked_fill(heads[..., None], -torch.inf))
