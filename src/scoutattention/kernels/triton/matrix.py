"""Products of few rows with a matrix on the device: bound by the time that reading the matrix takes.

A library's kernels for few rows share the sums of one result among programs, and add them up in a second launch. Here a
program reads whole rows of the matrix, far ahead. What it computes of one row does not depend on how many there are.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...runtime.stored import StoredMatrix
from .. import reference_rows
from .base import TL_DTYPES, Launch, arithmetic, ceil_div, check, tl, triton
from .stored_blocks.matrix import linear as linear_of_blocks

FEW = 16
"""Rows that are few; they are computed as so many."""
MOST = 8192
"""Rows of a matrix up to which this kernel computes its products: of more, a library's kernels read as fast."""


class ProductTile(NamedTuple):
    """rows: of the matrix, of a program.   depth: channels that are multiplied at a time.   stages: read ahead."""

    rows: int = 32
    depth: int = 256
    warps: int = 4
    stages: int = 4


def default_product_tile(*, hip: bool = torch.version.hip is not None) -> ProductTile:
    """The tile of a GPU. On AMD (`hip`) a program has 64 KiB of shared memory, which hold less that is read ahead."""
    return ProductTile(stages=2) if hip else ProductTile()


TILE = default_product_tile()


@triton.jit
def _product_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    x_t: int,
    T: int,
    A: int,
    B: int,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    FEW: tl.constexpr,
    DOT: tl.constexpr,
) -> None:
    """Program (part): ROWS rows of the matrix, times all rows of x."""
    b = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    t = tl.arange(0, FEW)
    a = tl.arange(0, DEPTH)
    of_matrix = weight + b.to(tl.int64)[:, None] * A + a[None, :]
    of_x = x + t[None, :] * x_t + a[:, None]
    sums = tl.zeros([ROWS, FEW], tl.float32)
    for start in range(0, A, DEPTH):
        there = start + a < A
        tile = tl.load(of_matrix + start, mask=(b < B)[:, None] & there[None, :], other=0.0).to(DOT)
        rows = tl.load(of_x + start, mask=there[:, None] & (t < T)[None, :], other=0.0).to(DOT)
        sums = tl.dot(tile, rows, sums, input_precision="ieee")
    tl.store(out + t[None, :] * B + b[:, None], sums, mask=(b < B)[:, None] & (t < T)[None, :])


def product_launch(x: Tensor, weight: Tensor, out: Tensor, tile: ProductTile = TILE) -> Launch:
    """The launch of `linear` for few rows, which fills `out`."""
    (T, A), B = x.shape, weight.shape[0]
    constants = {"ROWS": tile.rows, "DEPTH": tile.depth, "FEW": FEW, "DOT": arithmetic(x.dtype)}
    arguments = (x, weight, out, x.stride(0), T, A, B)
    return Launch(_product_kernel, (ceil_div(B, tile.rows),), arguments, constants, tile.warps, tile.stages)


def linear(x: Tensor, weight: Tensor | StoredMatrix) -> Tensor:
    """Rows x [T, A] times the transpose of weight, rounded once; the plain twin is `reference_rows.linear`.

    One launch for few rows of 16 bits and a matrix [B, A] that is not long, a library's for others.   weight: of the
    dtype of x, or a stored matrix; see `stored_blocks/matrix.py`.   Raises KernelError where a tensor does not fit.
    """
    if isinstance(weight, StoredMatrix):
        return linear_of_blocks(x, weight)
    if weight.dim() != 2 or not _few(x) or weight.shape[0] > MOST:
        return reference_rows.linear(x, weight)
    check("x", x, (None, None), *TL_DTYPES)
    check("weight", weight, (None, x.shape[1]), x.dtype, rows=2)
    out = x.new_empty(x.shape[0], weight.shape[0])
    product_launch(x, weight, out).run()
    return out


def _few(x: Tensor) -> bool:
    return 0 < x.shape[0] <= FEW and x.dtype in TL_DTYPES and x.dtype.itemsize == 2
