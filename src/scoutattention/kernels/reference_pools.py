"""Twins, in plain PyTorch, of the device kernels that move keys, values and queries, or say where they are."""

from torch import Tensor

from ..types import BlockList, PageSelection, Pools


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
