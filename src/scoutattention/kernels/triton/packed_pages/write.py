"""Blocks are packed on their way to the host's pages, on a GPU: a page crosses the link once, in codes.

Each program has one block of one KV head. Results are those of `runtime.packed`, bit for bit.
"""

import torch
from torch import Tensor

from ....types import CloseRequest, Pools
from ..base import TL_DTYPES, Launch, check, tl, triton
from .blocks import PackedPools, check_packed, check_pinned, extents, flat, shifts

ROUND = tl.constexpr(12582912.0)
"""1.5 * 2^23: added to a small float32 and taken off again, it leaves the nearest whole number, the even one of two."""
WARPS = 8
"""Of a program; with 4, one on Blackwell has too few registers for a head dim of 128."""


@triton.jit
def _rounded_down(x: tl.tensor) -> tl.tensor:
    """The next number of bfloat16 that is not above x, as float32."""
    bits = x.to(tl.int32, bitcast=True)
    towards_zero = bits & -65536
    below = tl.where((bits != towards_zero) & (bits < 0), towards_zero + 65536, towards_zero)
    return tl.where(tl.abs(x) < float("inf"), below.to(tl.float32, bitcast=True), x)


@triton.jit
def _as_bfloat16(x: tl.tensor) -> tl.tensor:
    """A number of bfloat16 that is given in float32; by its bits, since the interpreter converts no subnormal one."""
    return (x.to(tl.int32, bitcast=True) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _coded(
    block: tl.tensor, row: int, bounds: tl.tensor, P: tl.constexpr, D: tl.constexpr, P_PAD: tl.constexpr,
    D_PAD: tl.constexpr, BITS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Codes of a block, int32 [P_PAD, D_PAD], 0 beside it; its bounds are stored.   row: a row's stride."""
    TOP: tl.constexpr = (1 << BITS) - 1
    p = tl.arange(0, P_PAD)
    d = tl.arange(0, D_PAD)
    there = (p < P)[:, None] & (d < D)[None, :]
    rows = tl.load(block + p[:, None] * row + d[None, :], mask=there, other=0.0).to(tl.float32)
    low = tl.min(tl.where((p < P)[:, None], rows, float("inf")), axis=0)
    high = tl.max(tl.where((p < P)[:, None], rows, float("-inf")), axis=0)
    least = _rounded_down(low)
    step = -_rounded_down(tl.div_rn(least * 0.5 - high * 0.5, TOP * 1.0) * 2)
    step = tl.where(tl.sum(rows * 0.0, axis=0) == 0.0, step, float("nan"))  # the extremes may leave NaN out
    tl.store(bounds + d, _as_bfloat16(least), mask=d < D)
    tl.store(bounds + D + d, _as_bfloat16(step), mask=d < D)
    half_least, half_step = least * 0.5, tl.where(step > 0, step * 0.5, 1.0)
    codes = tl.div_rn(rows * 0.5 - half_least[None, :], half_step[None, :])
    codes = (tl.minimum(tl.maximum(codes, 0.0), TOP * 1.0) + ROUND) - ROUND
    return tl.where(there & (tl.abs(codes) <= TOP), codes.to(tl.int32), 0)


@triton.jit
def _pack_kernel(
    k: tl.tensor,
    v: tl.tensor,
    pages: tl.tensor,
    k_words: tl.tensor,
    k_bounds: tl.tensor,
    v_words: tl.tensor,
    v_bounds: tl.tensor,
    k_n: int,
    k_h: int,
    k_p: int,
    v_n: int,
    v_h: int,
    v_p: int,
    k_words_s: int,
    k_words_h: int,
    k_bounds_s: int,
    k_bounds_h: int,
    v_words_s: int,
    v_words_h: int,
    v_bounds_s: int,
    v_bounds_h: int,
    P: tl.constexpr,
    D: tl.constexpr,
    P_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
    BITS: tl.constexpr,
) -> None:
    """Program (block, head): its keys in words along the channels, its values in words along the rows.

    A block whose page is -1 is left out.
    """
    COUNT: tl.constexpr = 32 // BITS
    K_WORDS: tl.constexpr = D_PAD // COUNT
    V_WORDS: tl.constexpr = P_PAD // COUNT
    n = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1).to(tl.int64)
    s = tl.load(pages + n)
    if s >= 0:
        p = tl.arange(0, P_PAD)
        d = tl.arange(0, D_PAD)
        bounds = k_bounds + s * k_bounds_s + h * k_bounds_h
        codes = _coded(k + n * k_n + h * k_h, k_p, bounds, P, D, P_PAD, D_PAD, BITS)
        word = tl.sum(tl.reshape(codes, (P_PAD, K_WORDS, COUNT)) << shifts(BITS)[None, None, :], axis=2)
        w = tl.arange(0, K_WORDS)
        there = (p < P)[:, None] & (w < (D + COUNT - 1) // COUNT)[None, :]
        tl.store(k_words + s * k_words_s + h * k_words_h + w[None, :] * P + p[:, None], word, mask=there)
        bounds = v_bounds + s * v_bounds_s + h * v_bounds_h
        codes = _coded(v + n * v_n + h * v_h, v_p, bounds, P, D, P_PAD, D_PAD, BITS)
        word = tl.sum(tl.reshape(codes, (V_WORDS, COUNT, D_PAD)) << shifts(BITS)[None, :, None], axis=1)
        w = tl.arange(0, V_WORDS)
        there = (w < (P + COUNT - 1) // COUNT)[:, None] & (d < D)[None, :]
        tl.store(v_words + s * v_words_s + h * v_words_h + w[:, None] * D + d[None, :], word, mask=there)


def pack_launch(k: Tensor, v: Tensor, target: PackedPools, pages: Tensor) -> Launch:
    """The launch of `write_packed_blocks`."""
    tensors, strides = flat(target)
    arguments = (k, v, pages, *tensors, *k.stride()[:3], *v.stride()[:3], *strides)
    return Launch(_pack_kernel, tuple(k.shape[:2]), arguments, extents(target), WARPS)


def write_packed_blocks(k: Tensor, v: Tensor, target: PackedPools, pages: Tensor) -> None:
    """Pack blocks k, v [n, H, P, D] into places of a packed pool, int64 [n], in one launch; twin of `Packed[...] =`.

    A page of -1 is none.   target: as the source of `copy_packed_blocks`.   Raises KernelError where a tensor does not
    fit.
    """
    _, H, P, D = target[0].shape
    check_packed("target", target)
    check_pinned("target", target, k.device)
    check("k", k, (None, H, P, D), *TL_DTYPES)
    check("v", v, (k.shape[0], H, P, D), *TL_DTYPES)
    check("pages", pages, (k.shape[0],), torch.int64)
    pack_launch(k, v, target, pages).run()


def close_packed_blocks(source: Pools, target: PackedPools, what: CloseRequest) -> None:
    """Pack open blocks that are full into their pages; the twin of `PlainOps.close_blocks`.

    source, target: pools [L, S, H, P, D].   Raises KernelError where a tensor does not fit.
    """
    row, closed, fill = what.rows
    k, v = (blocks[:, what.entry].flatten(0, 1) for blocks in source)
    layers, pages = target[0].shape[:2]
    page = what.table[row, closed].where(fill + 1 == k.shape[2], -1)
    layer = torch.arange(layers, device=page.device)[:, None] * pages
    places = (layer + page).where(page >= 0, -1).flatten()
    write_packed_blocks(k, v, (target[0].flatten(0, 1), target[1].flatten(0, 1)), places)
