"""Twins, in plain PyTorch, of the device kernels that move keys and values."""

from torch import Tensor

Pools = tuple[Tensor, Tensor]  # keys and values of one layer, [S, H, P, D] each


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
