"""Products of rows with matrices in stored blocks on the device.

A byte is read once, and its numbers are never put in order: each plane of a group is multiplied with the channels of x
that belong to it.
"""

import torch
from torch import Tensor

from ....runtime.stored import StoredMatrix, StoredRows, in_order
from ... import reference_rows
from ..base import TL_DTYPES, Launch, arithmetic, ceil_div, check, tl, triton
from .numbers import GROUPINGS, StoredTile, byte_at, compiled_for, fill, first_column, plane_numbers

FEW = 16
"""Rows that are few; they are computed as so many."""
TILE = StoredTile(warps=8)
"""With 4 warps an A100 has too few registers for Q4_0 in float16."""
PROMPT_NUMBERS = 1 << 24
"""Numbers that are expanded at once for a product of many rows: fewer would be many more launches."""


@triton.jit
def _stored_kernel(
    x: tl.tensor,
    data: tl.tensor,
    out: tl.tensor,
    x_t: int,
    out_t: int,
    T: int,
    B: int,
    blocks: int,
    LENGTH: tl.constexpr,
    BYTES: tl.constexpr,
    OF_BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    PLANES: tl.constexpr,
    FIRST: tl.constexpr,
    FIFTH: tl.constexpr,
    CENTRE: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    FEW: tl.constexpr,
    DOT: tl.constexpr,
) -> None:
    """Program (part): ROWS rows of the matrix, times all rows of x, GROUPS groups at a time."""
    b = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    t = tl.arange(0, FEW)
    w = tl.arange(0, WIDTH)
    lines = data + b.to(tl.int64)[:, None, None] * (blocks * BYTES)
    sums = tl.zeros([ROWS, FEW], tl.float32)
    for start in range(0, blocks * OF_BLOCK, GROUPS):
        number = start + tl.arange(0, GROUPS)
        block, group = number // OF_BLOCK, number % OF_BLOCK
        there = (b < B)[:, None, None] & (block < blocks)[None, :, None]
        at = lines + block[None, :, None] * BYTES
        in_block, of_row = group[None, :, None], w[None, None, :]
        codes = byte_at(at + FIRST + WIDTH * in_block + of_row, there)
        for plane in tl.static_range(PLANES):
            tile = plane_numbers(codes, at, in_block, of_row, there, plane, PLANES, LENGTH, WIDTH, FIFTH, CENTRE)
            column = (block * LENGTH + first_column(group, plane, LENGTH, WIDTH))[:, None, None] + w[None, :, None]
            used = (block < blocks)[:, None, None] & (t < T)[None, None, :]
            rows = tl.load(x + t[None, None, :] * x_t + column, mask=used, other=0.0).to(DOT)
            tile = tl.reshape(tile.to(x.dtype.element_ty).to(DOT), [ROWS, GROUPS * WIDTH])
            sums = tl.dot(tile, tl.reshape(rows, [GROUPS * WIDTH, FEW]), sums, input_precision="ieee")
    tl.store(out + t[None, :] * out_t + b[:, None], sums, mask=(b < B)[:, None] & (t < T)[None, :])


def product_launch(x: Tensor, part: StoredRows, out: Tensor, tile: StoredTile = TILE) -> Launch:
    """The launch of `linear` with rows of one kind, which fills `out` [T, rows], contiguous in the last axis."""
    B, width = part.data.shape
    constants = compiled_for(part.kind, tile) | {"FEW": FEW, "DOT": arithmetic(x.dtype)}
    arguments = (x, part.data, out, x.stride(0), out.stride(0), len(x), B, width // part.kind.size)
    return Launch(_stored_kernel, (ceil_div(B, tile.rows),), arguments, constants, tile.warps, tile.stages)


def linear(x: Tensor, weight: StoredMatrix) -> Tensor:
    """Rows x [T, A] times the transpose of a stored matrix [B, A]; the plain twin is `reference_rows.linear`.

    Of few rows a launch for each part of the matrix, of more a library's product with numbers that are expanded: in
    both, the numbers are rounded to the dtype of x.   Raises KernelError where a tensor does not fit.
    """
    check("x", x, (None, weight.columns), *TL_DTYPES)
    if len(x) > FEW or any(part.kind not in GROUPINGS for part in weight.parts):
        return reference_rows.linear(x, weight, fill, PROMPT_NUMBERS)
    x, weight = in_order(x, weight)
    out, first = x.new_empty(len(x), weight.shape[0]), 0
    for part in weight.parts if len(x) else ():
        check("data", part.data, (None, None), torch.uint8, rows=2)
        product_launch(x, part, out[:, first : first + len(part.data)]).run()
        first += len(part.data)
    return out
