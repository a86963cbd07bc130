"""Norms of rows that are corrected on the way, as scouts are: two launches, in place of a norm and four products."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import KernelError
from ..reference_rows import RowCorrection
from .base import TL_DTYPES, Launch, ceil_div, check, padded, tl, triton

PART = 128  # channels of a program


@triton.jit
def _dims_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    left: tl.tensor,
    other: tl.tensor,
    sums: tl.tensor,
    x_t: int,
    left_t: int,
    other_t: int,
    A: int,
    C: tl.constexpr,
    C_OTHER: tl.constexpr,
    C_PAD: tl.constexpr,
    PART: tl.constexpr,
) -> None:
    """Program (row, part): what PART channels add to a sum of squares, and to products with `left` and with `other`."""
    t = tl.program_id(0).to(tl.int64)
    a = tl.program_id(1) * PART + tl.arange(0, PART)
    c = tl.arange(0, C_PAD)
    row = tl.load(x + t * x_t + a, mask=a < A, other=0.0).to(tl.float32)
    z = row * tl.load(weight + a, mask=a < A, other=0.0)
    sums += (t * tl.num_programs(1) + tl.program_id(1)) * (1 + C + C_OTHER)
    tl.store(sums, tl.sum(row * row, axis=0))
    place = c[:, None] * A + a[None, :]
    tile = tl.load(left + t * left_t + place, mask=(c < C)[:, None] & (a < A)[None, :], other=0.0)
    tl.store(sums + 1 + c, tl.sum(tile.to(tl.float32) * z[None, :], axis=1), mask=c < C)
    if C_OTHER > 0:
        tile = tl.load(other + t * other_t + place, mask=(c < C_OTHER)[:, None] & (a < A)[None, :], other=0.0)
        tl.store(sums + 1 + C + c, tl.sum(tile.to(tl.float32) * z[None, :], axis=1), mask=c < C_OTHER)


@triton.jit
def _correction_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    right: tl.tensor,
    other: tl.tensor,
    used: tl.tensor,
    other_used: tl.tensor,
    sums: tl.tensor,
    out: tl.tensor,
    x_t: int,
    right_t: int,
    other_t: int,
    A: int,
    eps: float,
    C: tl.constexpr,
    C_OTHER: tl.constexpr,
    C_PAD: tl.constexpr,
    PART: tl.constexpr,
    PARTS_PAD: tl.constexpr,
    USED: tl.constexpr,
    OTHER_USED: tl.constexpr,
) -> None:
    """Program (row, part): the norm of PART channels, and what both corrections add to it."""
    t = tl.program_id(0).to(tl.int64)
    a = tl.program_id(1) * PART + tl.arange(0, PART)
    parts = tl.num_programs(1)
    p = tl.arange(0, PARTS_PAD)
    place = sums + (t * parts + p) * (1 + C + C_OTHER)
    scale = tl.rsqrt(tl.sum(tl.load(place, mask=p < parts, other=0.0), axis=0) / A + eps)
    row = tl.load(x + t * x_t + a, mask=a < A, other=0.0).to(tl.float32)
    total = row * tl.load(weight + a, mask=a < A, other=0.0)
    change = _change(right + t * right_t, place + 1, a, p, parts, A, C, C_PAD)
    total += tl.where(tl.load(used + t) != 0, change, 0.0) if USED else change
    if C_OTHER > 0:
        change = _change(other + t * other_t, place + 1 + C, a, p, parts, A, C_OTHER, C_PAD)
        total += tl.where(tl.load(other_used + t) != 0, change, 0.0) if OTHER_USED else change
    tl.store(out + t * A + a, scale * total, mask=a < A)


@triton.jit
def _change(
    right: tl.tensor,
    sums: tl.tensor,
    a: tl.tensor,
    p: tl.tensor,
    parts: int,
    A: int,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
) -> tl.tensor:
    """Products of summed parts with the rows `a` of a matrix [A, C]."""
    c = tl.arange(0, C_PAD)
    own = tl.load(sums[:, None] + c[None, :], mask=(p < parts)[:, None] & (c < C)[None, :], other=0.0)
    tile = tl.load(right + a[:, None] * C + c[None, :], mask=(a < A)[:, None] & (c < C)[None, :], other=0.0)
    return tl.sum(tile.to(tl.float32) * tl.sum(own, axis=0)[None, :], axis=1)


def correction_launches(
    x: Tensor, weight: Tensor, eps: float, by: Sequence[RowCorrection], sums: Tensor, out: Tensor
) -> list[Launch]:
    """The launches of `corrected_norm`, which fill `out`.   sums: float32 memory, [T, parts, 1 + ranks]."""
    (T, A), one, other = x.shape, by[0], by[-1]
    ranks = {"C": one.left.shape[-2], "C_OTHER": other.left.shape[-2] if len(by) > 1 else 0}
    sizes = {**ranks, "C_PAD": padded(max(ranks.values())), "PART": PART}
    grid = (T, sums.shape[1])
    lefts, rights = ([_apart(getattr(part, side)) for part in (one, other)] for side in ("left", "right"))
    used = {"USED": one.used is not None, "OTHER_USED": other.used is not None}
    masks = (x if part.used is None else part.used for part in (one, other))
    first = (x, weight, one.left, other.left, sums, x.stride(0), *lefts, A)
    second = (x, weight, one.right, other.right, *masks, sums, out, x.stride(0), *rights, A, eps)
    return [
        Launch(_dims_kernel, grid, first, sizes),
        Launch(_correction_kernel, grid, second, {**sizes, "PARTS_PAD": padded(grid[1]), **used}),
    ]


def corrected_norm(x: Tensor, weight: Tensor, eps: float, by: Sequence[RowCorrection]) -> Tensor:
    """The norm of rows with what one or two corrections add, rounded once; the plain twin is in `reference_rows`.

    x: [T, A], contiguous in the last axis.   weight: float32 [A].   by: matrices contiguous, of any float dtype.
    Raises KernelError where a tensor does not fit.
    """
    check("x", x, (None, None), *TL_DTYPES)
    T, A = x.shape
    check("weight", weight, (A,), torch.float32)
    if len(by) not in (1, 2):
        raise KernelError(f"there are {len(by)} corrections: there must be one or two")
    for left, right, used in by:
        each = (T,) if left.dim() == 3 else ()
        check("left", left, (*each, None, A), *TL_DTYPES, rows=2)
        check("right", right, (*each, A, left.shape[-2]), *TL_DTYPES, rows=2)
        if used is not None:
            check("used", used, (T,), torch.bool)
    width = 1 + sum(one.left.shape[-2] for one in by)
    sums = torch.empty((T, ceil_div(A, PART), width), dtype=torch.float32, device=x.device)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for launch in correction_launches(x, weight, eps, by, sums, out):
        launch.run()
    return out


def _apart(matrix: Tensor) -> int:
    """Numbers from one row's matrix to the next one's; 0 where all have the same."""
    return matrix.stride(0) if matrix.dim() == 3 else 0
