"""What stored blocks stand for, in Triton.

A block is taken in groups of bytes. Each byte of a group has one number of each of the group's planes, and the numbers
of a plane follow one another in the row.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ....runtime.stored import StoredKind, StoredMatrix, StoredRows
from ... import reference_stored
from ..base import TL_DTYPES, Launch, ceil_div, check, tl, triton


class Grouping(NamedTuple):
    """How a kind's block is taken apart.

    groups: of a block.   width: bytes of a group.   planes: numbers of a byte.   first: the byte of the first codes.
    fifth: the byte of the fifth bits, 0 where codes have none.   centre: the code of the number 0; 0 where there is a
    least number instead.
    """

    groups: int
    width: int
    planes: int
    first: int
    fifth: int
    centre: int


GROUPINGS = {
    StoredKind.Q4_0: Grouping(1, 16, 2, 2, 0, 8),
    StoredKind.Q4_1: Grouping(1, 16, 2, 4, 0, 0),
    StoredKind.Q5_0: Grouping(1, 16, 2, 6, 2, 16),
    StoredKind.Q5_1: Grouping(1, 16, 2, 8, 4, 0),
    StoredKind.Q8_0: Grouping(1, 32, 1, 2, 0, 0),
    StoredKind.Q4_K: Grouping(4, 32, 2, 16, 0, 0),
    StoredKind.Q5_K: Grouping(4, 32, 2, 48, 16, 0),
    StoredKind.Q6_K: Grouping(8, 16, 2, 0, 0, 32),
}
"""The kinds that these kernels read, `GPU_KINDS`."""


class StoredTile(NamedTuple):
    """rows: of the matrix, of a program.   columns: that are multiplied at a time.   stages: read ahead."""

    rows: int = 16
    columns: int = 256
    warps: int = 4
    stages: int = 3


EXPANDED = StoredTile(rows=8, columns=512, stages=1)


@triton.jit
def byte_at(at: tl.tensor, there: tl.tensor) -> tl.tensor:
    """Bytes as int32; 0 where none is `there`."""
    return tl.load(at, mask=there, other=0).to(tl.int32) & 255


@triton.jit
def _half(at: tl.tensor, there: tl.tensor) -> tl.tensor:
    return tl.load(at.to(tl.pointer_type(tl.float16), bitcast=True), mask=there, other=0.0).to(tl.float32)


@triton.jit
def _signed(byte: tl.tensor) -> tl.tensor:
    return tl.where(byte > 127, byte - 256, byte).to(tl.float32)


@triton.jit
def first_column(group: tl.tensor, PLANE: tl.constexpr, LENGTH: tl.constexpr, WIDTH: tl.constexpr) -> tl.tensor:
    """The first of a block's columns in a plane of a group."""
    if LENGTH == 32:
        return 0 * group + WIDTH * PLANE
    elif WIDTH == 32:
        return 64 * group + 32 * PLANE
    else:
        return 128 * (group // 4) + 16 * (group % 4) + 64 * PLANE


@triton.jit
def plane_numbers(
    codes: tl.tensor,
    at: tl.tensor,
    group: tl.tensor,
    w: tl.tensor,
    there: tl.tensor,
    PLANE: tl.constexpr,
    PLANES: tl.constexpr,
    LENGTH: tl.constexpr,
    WIDTH: tl.constexpr,
    FIFTH: tl.constexpr,
    CENTRE: tl.constexpr,
) -> tl.tensor:
    """The numbers of a plane of groups, float32 [rows, groups, width].

    codes: the groups' bytes.   at: the blocks' first bytes.   at, group, there: [rows, groups, 1], or broadcast to it.
    """
    if PLANES == 1:
        return _half(at, there) * _signed(codes)
    code = (codes >> 4 * PLANE) & 15
    if LENGTH == 32:
        if FIFTH > 0:
            code |= ((byte_at(at + FIFTH + 2 * PLANE + w // 8, there) >> (w % 8)) & 1) << 4
        if CENTRE > 0:
            return _half(at, there) * (code - CENTRE).to(tl.float32)
        return _half(at, there) * code.to(tl.float32) + _half(at + 2, there)
    if CENTRE > 0:
        high = byte_at(at + 128 + 32 * (group // 4) + 16 * (group % 2) + w, there)
        code |= ((high >> (2 * (group % 4 // 2) + 4 * PLANE)) & 3) << 4
        scale = _signed(byte_at(at + 192 + first_column(group, PLANE, LENGTH, WIDTH) // 16, there))
        return _half(at + 208, there) * scale * (code - CENTRE).to(tl.float32)
    if FIFTH > 0:
        code |= ((byte_at(at + FIFTH + w, there) >> (2 * group + PLANE)) & 1) << 4
    s = 2 * group + PLANE  # of eight scales and eight least numbers, six bits each
    late = s > 3
    low, high = byte_at(at + 4 + s, there), byte_at(at + 8 + s, there)
    early = byte_at(at + tl.where(late, s, 4 + s), there)
    scale = tl.where(late, (high & 15) | (early >> 6 << 4), low & 63).to(tl.float32)
    least = tl.where(late, (high >> 4) | (low >> 6 << 4), high & 63).to(tl.float32)
    return _half(at, there) * scale * code.to(tl.float32) - _half(at + 2, there) * least


@triton.jit
def _expand_kernel(
    data: tl.tensor,
    out: tl.tensor,
    out_b: int,
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
) -> None:
    """Program (part, groups): the numbers of GROUPS groups of ROWS rows."""
    b = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None, None]
    w = tl.arange(0, WIDTH)[None, None, :]
    number = (tl.program_id(1) * GROUPS + tl.arange(0, GROUPS))[None, :, None]
    block, group = number // OF_BLOCK, number % OF_BLOCK
    there = (b < B) & (block < blocks)
    at = data + b * (blocks * BYTES) + block * BYTES
    codes = byte_at(at + FIRST + WIDTH * group + w, there)
    for plane in tl.static_range(PLANES):
        tile = plane_numbers(codes, at, group, w, there, plane, PLANES, LENGTH, WIDTH, FIFTH, CENTRE)
        column = block * LENGTH + first_column(group, plane, LENGTH, WIDTH) + w
        tl.store(out + b * out_b + column, tile, mask=there)


def compiled_for(kind: StoredKind, tile: StoredTile) -> dict[str, int]:
    """What a kernel is compiled for."""
    how = GROUPINGS[kind]
    block = {"LENGTH": kind.length, "BYTES": kind.size, "OF_BLOCK": how.groups}
    codes = {"WIDTH": how.width, "PLANES": how.planes, "FIRST": how.first, "FIFTH": how.fifth, "CENTRE": how.centre}
    return block | codes | {"ROWS": tile.rows, "GROUPS": tile.columns // (how.width * how.planes)}


def expand_launch(out: Tensor, part: StoredRows, tile: StoredTile = EXPANDED) -> Launch:
    """The launch of `fill`."""
    (B, width), constants = part.data.shape, compiled_for(part.kind, tile)
    blocks = width // part.kind.size
    grid = (ceil_div(B, tile.rows), ceil_div(blocks * constants["OF_BLOCK"], constants["GROUPS"]))
    arguments = (part.data, out, out.stride(0), B, blocks)
    return Launch(_expand_kernel, grid, arguments, constants, tile.warps, tile.stages)


def fill(out: Tensor, part: StoredRows) -> None:
    """Write the numbers of rows to `out` [rows, columns], contiguous; the plain twin is `fill_plainly`.

    Raises KernelError where a tensor does not fit.
    """
    if part.kind not in GROUPINGS:
        reference_stored.fill_plainly(out, part)
        return
    check("out", out, (len(part.data), part.columns), *TL_DTYPES, rows=2)
    check("data", part.data, (None, None), torch.uint8, rows=2)
    expand_launch(out, part).run()


def expand(weight: StoredMatrix, rows: slice | Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of a stored matrix as numbers; the plain twin is `reference_stored.expand`."""
    return reference_stored.expand(weight, rows, dtype, fill)
