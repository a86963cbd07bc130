"""Partial attention over packed pages: their codes are multiplied, and what they stand for is never made.

With key p of a block, channel by channel, least + code * step, its score is q . least + (q * step) . code; and weighted
values are weight * least + (weighted codes) * step. The products are made in two parts of DOT, so that little is lost.
"""

import torch
from torch import Tensor

from ....types import BlockList, Partial
from ..base import TL_DTYPES, Launch, arithmetic, ceil_div, check, padded, processors, tl, triton
from ..partial import LOG2E, LOWEST, combine_launch, fold, natural
from ..partial_size import PartialTile, blocks_per_split
from .blocks import PackedPools, check_packed, extents, flat, load_bounds, load_keys, load_values

TILE = PartialTile(tokens=32, warps=4, stages=1, waves=8, least=128)
"""Short splits: each block is a wait for the host's memory, and most of a list's blocks are skipped."""


@triton.jit
def _product(a: tl.tensor, codes: tl.tensor, DOT: tl.constexpr) -> tl.tensor:
    """float32 times whole numbers up to 256, which DOT holds."""
    high = a.to(DOT)
    low = (a - high.to(tl.float32)).to(DOT)
    return tl.dot(low, codes, tl.dot(high, codes, input_precision="ieee"), input_precision="ieee")


@triton.jit
def _packed_kernel(
    q: tl.tensor,
    k_words: tl.tensor,
    k_bounds: tl.tensor,
    v_words: tl.tensor,
    v_bounds: tl.tensor,
    index: tl.tensor,
    length: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    scale: float,
    k_words_s: int,
    k_words_h: int,
    k_bounds_s: int,
    k_bounds_h: int,
    v_words_s: int,
    v_words_h: int,
    v_bounds_s: int,
    v_bounds_h: int,
    index_b: int,
    index_h: int,
    length_b: int,
    length_h: int,
    H: int,
    G: int,
    N: int,
    per_split: int,
    P: tl.constexpr,
    D: tl.constexpr,
    P_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
    BITS: tl.constexpr,
    G_PAD: tl.constexpr,
    DOT: tl.constexpr,
) -> None:
    """Program (row, split): the query heads of one sequence and KV head, over one split of its list."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    b, h = row // H, row % H
    g = tl.arange(0, G_PAD)
    d = tl.arange(0, D_PAD)
    p = tl.arange(0, P_PAD)
    heads = (g < G)[:, None] & (d < D)[None, :]
    query = tl.load(q + (row * G + g)[:, None] * D + d[None, :], mask=heads, other=0.0).to(tl.float32) * (scale * LOG2E)
    index += b * index_b + h * index_h
    length += b * length_b + h * length_h
    best = tl.full([G_PAD], LOWEST, tl.float32)
    total = tl.zeros([G_PAD], tl.float32)
    acc = tl.zeros([G_PAD, D_PAD], tl.float32)
    for n in range(split * per_split, tl.minimum((split + 1) * per_split, N)):
        rows = tl.load(length + n)
        if rows > 0:
            s = tl.load(index + n).to(tl.int64)
            keys = load_keys(k_words + s * k_words_s + h * k_words_h, rows, P, D, P_PAD, D_PAD, BITS)
            values = load_values(v_words + s * v_words_s + h * v_words_h, rows, D, P_PAD, D_PAD, BITS)
            k_least, k_step = load_bounds(k_bounds + s * k_bounds_s + h * k_bounds_h, D, D_PAD)
            v_least, v_step = load_bounds(v_bounds + s * v_bounds_s + h * v_bounds_h, D, D_PAD)
            scores = _product(query * k_step[None, :], tl.trans(keys).to(tl.float32).to(DOT), DOT)
            scores += tl.sum(query * k_least[None, :], axis=1)[:, None]
            scores = tl.where((p < rows)[None, :], scores, float("-inf"))
            best, total, fade, weights = fold(best, total, scores, 1)
            fresh = _product(weights, values.to(tl.float32).to(DOT), DOT) * v_step[None, :]
            acc = acc * fade[:, None] + fresh + tl.sum(weights, axis=1)[:, None] * v_least[None, :]
    result = (split * tl.num_programs(0) + row) * G + g
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + result[:, None] * D + d[None, :], acc, mask=heads)
    tl.store(lse + result, natural(best, total), mask=g < G)


def packed_launches(
    q: Tensor, pools: PackedPools, blocks: BlockList, scale: float, result: Partial, multiprocessors: int
) -> list[Launch]:
    """The launches that fill `result`: one, or two where the list is split."""
    B, H, G, D = q.shape
    N = blocks.index.shape[2]
    per_split = blocks_per_split(B * H, N, pools[0].rows, TILE, multiprocessors)
    splits = max(1, ceil_div(N, per_split))
    parts = result if splits == 1 else Partial(q.new_empty((splits, B, H, G, D), dtype=torch.float32),
                                               q.new_empty((splits, B, H, G), dtype=torch.float32))  # fmt: skip
    tensors, strides = flat(pools)
    lists = (*blocks.index.stride()[:2], *blocks.length.stride()[:2])
    arguments = (q, *tensors, *blocks, *parts[:2], scale, *strides, *lists, H, G, N, per_split)
    constants = {**extents(pools), "G_PAD": padded(G, 16), "DOT": arithmetic(torch.bfloat16)}
    launches = [Launch(_packed_kernel, (B * H, splits), arguments, constants, TILE.warps, TILE.stages)]
    return launches if splits == 1 else [*launches, combine_launch(parts, result)]


def partial_packed(q: Tensor, k_v: PackedPools, blocks: BlockList, scale: float) -> Partial:
    """Attention of every query to the listed blocks of a packed pool; the twin of `reference.partial`.

    q: [B, H, G, D], contiguous.   k_v: one layer of a pool, on the device or in pinned host memory, of which only the
    listed tokens' words are read.   Raises KernelError where a tensor does not fit. Indices are not looked at.
    """
    B, H, G, D = q.shape
    N = blocks.index.shape[-1]
    check("q", q, (None, None, None, None), *TL_DTYPES, rows=4)
    check_packed("k and v", k_v)
    check("k.bounds", k_v[0].bounds, (None, H, 2, D), torch.bfloat16, rows=2)
    check("blocks.index", blocks.index, (B, H, N), torch.int32)
    check("blocks.length", blocks.length, (B, H, N), torch.int32)
    result = Partial(q.new_empty(q.shape, dtype=torch.float32), q.new_empty((B, H, G), dtype=torch.float32))
    for launch in packed_launches(q, k_v, blocks, scale, result, processors(q.device)):
        launch.run()
    return result
