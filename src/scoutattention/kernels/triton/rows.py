"""What a decoder layer computes of each row on the device, one kernel each; its matrix products are PyTorch's.

A step of a few rows is many small kernels, each of which costs more to begin than to do. In plain PyTorch the norm is
three, the rotary embedding six and the gated unit two.
"""

import torch
from torch import Tensor

from ...types import Rope
from .. import reference_rows
from .base import TL_DTYPES, Launch, ceil_div, check, padded, tl, triton

CHANNELS = 1024  # of a gated unit that a program computes

linear = reference_rows.linear


@triton.jit
def _norm_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    x_t: int,
    x_n: int,
    N: int,
    eps: float,
    A: tl.constexpr,
    A_PAD: tl.constexpr,
) -> None:
    """Program (row, n): the n-th of the N weights is its own."""
    t = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1).to(tl.int64)
    a = tl.arange(0, A_PAD)
    row = tl.load(x + t * x_t + n * x_n + a, mask=a < A, other=0.0).to(tl.float32)
    row *= tl.rsqrt(tl.sum(row * row, axis=0) / A + eps)
    row *= tl.load(weight + n * A + a, mask=a < A, other=0.0)
    tl.store(out + (t * N + n) * A + a, row, mask=a < A)


@triton.jit
def _rotate_kernel(
    x: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    out: tl.tensor,
    x_t: int,
    x_h: int,
    heads: int,
    D: tl.constexpr,
    HALF: tl.constexpr,
) -> None:
    """Program (row, head)."""
    t = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, HALF)
    there = d < D // 2
    head = x + t * x_t + h * x_h + d
    first = tl.load(head, mask=there, other=0.0).to(tl.float32)
    second = tl.load(head + D // 2, mask=there, other=0.0).to(tl.float32)
    table = t * D + d
    turned = first * tl.load(cos + table, mask=there) - second * tl.load(sin + table, mask=there)
    tl.store(out + (t * heads + h) * D + d, turned, mask=there)
    table += D // 2
    turned = second * tl.load(cos + table, mask=there) + first * tl.load(sin + table, mask=there)
    tl.store(out + (t * heads + h) * D + D // 2 + d, turned, mask=there)


@triton.jit
def _swiglu_kernel(x: tl.tensor, out: tl.tensor, width: int, CHANNELS: tl.constexpr) -> None:
    """Program (row, part): CHANNELS of the row's channels."""
    t = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    gate = tl.load(x + 2 * t * width + c, mask=c < width, other=0.0).to(tl.float32)
    up = tl.load(x + (2 * t + 1) * width + c, mask=c < width, other=0.0).to(tl.float32)
    small = tl.exp(-tl.abs(gate))
    tl.store(out + t * width + c, gate * tl.where(gate >= 0, 1.0, small) / (1 + small) * up, mask=c < width)


def norm_launch(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Launch:
    """The launch of `rms_norm`, which fills `out`.   x: [T, N, A]."""
    T, N, A = x.shape
    constants = {"A": A, "A_PAD": padded(A)}
    warps = 8 if A > 2048 else 1 if A <= 256 else 4
    return Launch(_norm_kernel, (T, N), (x, weight, out, *x.stride()[:2], N, eps), constants, warps)


def rotate_launch(x: Tensor, rope: Rope, out: Tensor) -> Launch:
    """The launch of `rotate`, which fills `out`."""
    T, heads, D = x.shape
    constants = {"D": D, "HALF": padded(D // 2)}
    return Launch(_rotate_kernel, (T, heads), (x, *rope, out, *x.stride()[:2], heads), constants, warps=1)


def swiglu_launch(x: Tensor, out: Tensor) -> Launch:
    """The launch of `swiglu`, which fills `out`."""
    T, width = out.shape
    return Launch(_swiglu_kernel, (T, ceil_div(width, CHANNELS)), (x, out, width), {"CHANNELS": CHANNELS})


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide rows by their root mean square, times weight, rounded to the dtype of x once, at the end.

    The plain twin is `reference_rows.rms_norm`.

    x: [T, A] or [T, N, A], contiguous in the last axis.   weight: float32 [A] or [N, A].   Raises KernelError where a
    tensor does not fit.
    """
    check("x", x, (None,) * x.dim(), *TL_DTYPES)
    check("weight", weight, tuple(x.shape[1:]), torch.float32, rows=x.dim() - 1)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    norm_launch(x if x.dim() == 3 else x[:, None], weight, eps, out).run()
    return out


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotary embedding of heads, in the dtype of x; the plain twin is `reference_rows.rotate`.

    x: [T, heads, D], contiguous in the last axis; D is even.   Raises KernelError where a tensor does not fit.
    """
    T, _, D = x.shape
    rope = Rope(rope.cos.contiguous(), rope.sin.contiguous())
    check("x", x, (None, None, D // 2 * 2), *TL_DTYPES)
    check("cos", rope.cos, (T, D), torch.float32)
    check("sin", rope.sin, (T, D), torch.float32)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rotate_launch(x, rope, out).run()
    return out


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up, [T, I], gate beside up in x; the plain twin is `reference_rows.swiglu`.

    x: [T, 2 * I], contiguous.   Raises KernelError where it does not fit.
    """
    T, both = x.shape
    check("x", x, (None, both // 2 * 2), *TL_DTYPES, rows=2)
    out = x.new_empty(T, both // 2)
    swiglu_launch(x, out).run()
    return out
