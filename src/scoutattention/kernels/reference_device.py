"""Twins, in plain PyTorch, of device kernels that do several things in one launch."""

import torch
from torch import Tensor

from ..types import Partial
from .reference import corrected, merge, score_digests

Pools = tuple[Tensor, Tensor]  # keys and values of one layer, [S, H, P, D] each


def merge_corrected(near: Partial, far: Partial, q: Tensor, q_hat: Tensor, scale: float) -> Tensor:
    """Attention over near and far keys, the far ones' weight corrected for having been attended with q_hat.

    near, far: of disjoint keys, far with mean_key.   q, q_hat: [B, H, G, D].   Returns [B, H, G, D] in q's dtype.
    """
    return merge(near, corrected(far, q, q_hat, scale)).out.to(q.dtype)


def block_weights(q: Tensor, digests: Tensor, pages: Tensor, bonus: Tensor, scale: float) -> Tensor:
    """How much the group's queries want each block: softmax of the scores over the blocks, its mean over the group.

    q: [B, H, G, D].   digests: [S, H, 2 * D], see `reference.min_max`.   pages: int32 [B, N].
    bonus: float32 [B, 1, N], added to the weights; -inf where there is no block, which then takes no part.
    Returns float32 [B, H, N]; -inf where the bonus is.
    """
    absent = bonus == -torch.inf
    scores = (score_digests(q, digests.float(), pages) * scale).masked_fill(absent[:, None], -torch.inf)
    return (scores.softmax(-1).mean(2) + bonus).masked_fill(absent, -torch.inf)


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
