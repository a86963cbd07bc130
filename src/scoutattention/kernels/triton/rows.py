"""What a decoder layer computes of each row on the device, one kernel each; large matrix products are PyTorch's.

A step of a few rows is many small kernels, each of which costs more to begin than to do. In plain PyTorch a norm is
three, a sum and its norm four, what places heads up to sixteen, and the gated unit two.
"""

import torch
from torch import Tensor

from ...types import Rope
from ..reference_rows import HeadPlacing
from .base import TL_DTYPES, Launch, ceil_div, check, padded, tl, triton
from .corrections import corrected_norm
from .matrix import linear
from .stored_blocks.numbers import expand

__all__ = ["add_norm", "corrected_norm", "expand", "linear", "place_heads", "rms_norm", "swiglu"]

CHANNELS = 1024  # of a gated unit that a program computes


@triton.jit
def _norm_kernel(
    x: tl.tensor,
    change: tl.tensor,
    weight: tl.tensor,
    total: tl.tensor,
    out: tl.tensor,
    x_t: int,
    eps: float,
    A: tl.constexpr,
    A_PAD: tl.constexpr,
    ADDS: tl.constexpr,
) -> None:
    """Program (row): ADDS its change first, and stores the sum too."""
    t = tl.program_id(0).to(tl.int64)
    a = tl.arange(0, A_PAD)
    row = tl.load(x + t * x_t + a, mask=a < A, other=0.0).to(tl.float32)
    if ADDS:
        row += tl.load(change + t * A + a, mask=a < A, other=0.0).to(tl.float32)
        row = row.to(total.dtype.element_ty)  # what is normalised is what is stored
        tl.store(total + t * A + a, row, mask=a < A)
        row = row.to(tl.float32)
    row *= tl.rsqrt(tl.sum(row * row, axis=0) / A + eps)
    row *= tl.load(weight + a, mask=a < A, other=0.0)
    tl.store(out + t * A + a, row, mask=a < A)


@triton.jit
def _place_kernel(
    x: tl.tensor,
    bias: tl.tensor,
    norm: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    x_t: int,
    Q: int,
    H: int,
    eps: float,
    D: tl.constexpr,
    HALF: tl.constexpr,
    BIAS: tl.constexpr,
    NORM: tl.constexpr,
    PAIRED: tl.constexpr,
) -> None:
    """Program (row, head): Q queries, then H keys, then H values, which stay as they are but for the BIAS.

    PAIRED: the two channels that rotate together follow one another in x and in the bias.
    """
    t = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, HALF)
    there = d < D // 2
    turns = d < tl.where(n < Q + H, D // 2, 0)
    pairs = PAIRED and n < Q + H
    one_at = n * D + tl.where(pairs, 2, 1) * d
    two_at = one_at + tl.where(pairs, 1, D // 2)
    first = tl.load(x + t * x_t + one_at, mask=there, other=0.0).to(tl.float32)
    second = tl.load(x + t * x_t + two_at, mask=there, other=0.0).to(tl.float32)
    if BIAS:
        first += tl.load(bias + one_at, mask=there, other=0.0).to(tl.float32)
        second += tl.load(bias + two_at, mask=there, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(first * first + second * second, axis=0) / D + eps)
        scale = tl.where(n < Q + H, scale, 1.0)
        first *= scale * tl.load(norm + n * D + d, mask=turns, other=1.0)
        second *= scale * tl.load(norm + n * D + D // 2 + d, mask=turns, other=1.0)
    table = t * D + d
    one = first * tl.load(cos + table, mask=turns, other=1.0) - second * tl.load(sin + table, mask=turns, other=0.0)
    table += D // 2
    two = second * tl.load(cos + table, mask=turns, other=1.0) + first * tl.load(sin + table, mask=turns, other=0.0)
    query, key, value = (t * Q + n) * D + d, (t * H + n - Q) * D + d, (t * H + n - Q - H) * D + d
    tl.store(q + query, one, mask=d < tl.where(n < Q, D // 2, 0))
    tl.store(q + query + D // 2, two, mask=d < tl.where(n < Q, D // 2, 0))
    tl.store(k + key, one, mask=d < tl.where((n >= Q) & (n < Q + H), D // 2, 0))
    tl.store(k + key + D // 2, two, mask=d < tl.where((n >= Q) & (n < Q + H), D // 2, 0))
    tl.store(v + value, one, mask=d < tl.where(n >= Q + H, D // 2, 0))
    tl.store(v + value + D // 2, two, mask=d < tl.where(n >= Q + H, D // 2, 0))


@triton.jit
def _swiglu_kernel(x: tl.tensor, out: tl.tensor, width: int, CHANNELS: tl.constexpr) -> None:
    """Program (row, part): CHANNELS of the row's channels."""
    t = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    gate = tl.load(x + 2 * t * width + c, mask=c < width, other=0.0).to(tl.float32)
    up = tl.load(x + (2 * t + 1) * width + c, mask=c < width, other=0.0).to(tl.float32)
    small = tl.exp(-tl.abs(gate))
    tl.store(out + t * width + c, gate * tl.where(gate >= 0, 1.0, small) / (1 + small) * up, mask=c < width)


def norm_launch(x: Tensor, change: Tensor | None, weight: Tensor, eps: float, result: tuple[Tensor, Tensor]) -> Launch:
    """The launch of `add_norm`, which fills both results, or of `rms_norm`, which fills the second.   x: [T, A]."""
    T, A = x.shape
    constants = {"A": A, "A_PAD": padded(A), "ADDS": change is not None}
    warps = 8 if A > 2048 else 1 if A <= 256 else 4
    arguments = (x, x if change is None else change, weight, *result, x.stride(0), eps)
    return Launch(_norm_kernel, (T,), arguments, constants, warps)


def place_launch(x: Tensor, how: HeadPlacing, result: tuple[Tensor, Tensor, Tensor]) -> Launch:
    """The launch of `place_heads`, which fills `result`."""
    T, heads, D = x.shape
    bias, norm = (x if part is None else part for part in (how.bias, how.norm))
    given = {"BIAS": how.bias is not None, "NORM": how.norm is not None, "PAIRED": how.paired}
    constants = {"D": D, "HALF": padded(D // 2), **given}
    arguments = (x, bias, norm, *how.rope, *result, x.stride(0), how.queries, (heads - how.queries) // 2, how.eps)
    return Launch(_place_kernel, (T, heads), arguments, constants, warps=1)


def swiglu_launch(x: Tensor, out: Tensor) -> Launch:
    """The launch of `swiglu`, which fills `out`."""
    T, width = out.shape
    return Launch(_swiglu_kernel, (T, ceil_div(width, CHANNELS)), (x, out, width), {"CHANNELS": CHANNELS})


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide rows by their root mean square, times weight, rounded to the dtype of x once, at the end.

    The plain twin is `reference_rows.rms_norm`.

    x: [T, A], contiguous in the last axis.   weight: float32 [A].   Raises KernelError where a tensor does not fit.
    """
    check("x", x, (None, None), *TL_DTYPES)
    check("weight", weight, tuple(x.shape[1:]), torch.float32)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    norm_launch(x, None, weight, eps, (out, out)).run()
    return out


def add_norm(x: Tensor, change: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of rows and their change, and its norm, in one launch; the plain twin is `reference_rows.add_norm`.

    x, change: [T, A], of one dtype, change contiguous.   weight: float32 [A].   Raises KernelError where a tensor does
    not fit.
    """
    check("x", x, (None, None), *TL_DTYPES)
    check("change", change, tuple(x.shape), x.dtype, rows=2)
    check("weight", weight, tuple(x.shape[1:]), torch.float32)
    total, out = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    norm_launch(x, change, weight, eps, (total, out)).run()
    return total, out


def place_heads(x: Tensor, how: HeadPlacing) -> tuple[Tensor, Tensor, Tensor]:
    """Projected heads as queries, keys and values, in one launch; the plain twin is `reference_rows.place_heads`.

    x: [T, Q + 2 H, D], contiguous in the last two axes; D is even.   Returns contiguous [T, Q, D], [T, H, D] and
    [T, H, D], rounded to the dtype of x once.   Raises KernelError where a tensor does not fit.
    """
    T, heads, D = x.shape
    keys = (heads - how.queries) // 2
    how = how._replace(rope=Rope(how.rope.cos.contiguous(), how.rope.sin.contiguous()))
    check("x", x, (None, how.queries + 2 * keys, D // 2 * 2), *TL_DTYPES, rows=2)
    check("cos", how.rope.cos, (T, D), torch.float32)
    check("sin", how.rope.sin, (T, D), torch.float32)
    if how.bias is not None:
        check("bias", how.bias, (heads * D,), *TL_DTYPES)
    if how.norm is not None:
        check("norm", how.norm[: how.queries + keys], (how.queries + keys, D), torch.float32, rows=2)
    q, k, v = (x.new_empty(T, count, D) for count in (how.queries, keys, keys))
    place_launch(x, how, (q, k, v)).run()
    return q, k, v


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up, [T, I], gate beside up in x; the plain twin is `reference_rows.swiglu`.

    x: [T, 2 * I], contiguous.   Raises KernelError where it does not fit.
    """
    T, both = x.shape
    check("x", x, (None, both // 2 * 2), *TL_DTYPES, rows=2)
    out = x.new_empty(T, both // 2)
    swiglu_launch(x, out).run()
    return out
