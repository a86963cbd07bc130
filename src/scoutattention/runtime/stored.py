"""Matrices as a file keeps them: rows of blocks of numbers in few bits, which are read where they are."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from itertools import groupby

import torch
from torch import Tensor

from ..errors import KernelError


class StoredKind(Enum):
    """How GGUF keeps a row of numbers, in blocks of `length` numbers and `size` bytes.

    number: of the kind, in GGUF.   scales: the bytes of a block at which its float16 scales begin; () where the block
    is one number.
    """

    number: int
    length: int
    size: int
    scales: tuple[int, ...]

    F32 = 0, 1, 4, ()
    F16 = 1, 1, 2, ()
    Q4_0 = 2, 32, 18, (0,)
    Q4_1 = 3, 32, 20, (0, 2)
    Q5_0 = 6, 32, 22, (0,)
    Q5_1 = 7, 32, 24, (0, 2)
    Q8_0 = 8, 32, 34, (0,)
    Q2_K = 10, 256, 84, (80, 82)
    Q3_K = 11, 256, 110, (108,)
    Q4_K = 12, 256, 144, (0, 2)
    Q5_K = 13, 256, 176, (0, 2)
    Q6_K = 14, 256, 210, (208,)
    IQ4_NL = 20, 32, 18, (0,)
    IQ4_XS = 23, 256, 136, (0,)
    BF16 = 30, 1, 2, ()

    def __init__(self, number: int, length: int, size: int, scales: tuple[int, ...]) -> None:
        self.number, self.length, self.size, self.scales = number, length, size, scales

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of a row, or None where its numbers are quantised."""
        return {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(self.name)


KINDS = {kind.number: kind for kind in StoredKind}
"""The kinds that are supported, by GGUF's numbers."""
GPU_KINDS = frozenset(StoredKind[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"))
"""The kinds that a GPU's kernels read."""


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Consecutive rows of a matrix, of one kind.   data: uint8 [rows, bytes of a row], contiguous; it may be mapped."""

    data: Tensor
    kind: StoredKind

    @property
    def columns(self) -> int:
        """Numbers of a row."""
        return self.data.shape[1] // self.kind.size * self.kind.length


@dataclass(frozen=True, eq=False)
class StoredMatrix:
    """A matrix [rows, columns] in blocks: `parts`, one below the other, of as many columns each.

    order: int64 [columns], which column of the matrix each column in the blocks is; None where all are in their places.
    """

    parts: tuple[StoredRows, ...]
    columns: int
    order: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return sum(part.data.shape[0] for part in self.parts), self.columns

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return sum(part.data.nbytes for part in self.parts)

    @property
    def device(self) -> torch.device:
        """Where the blocks are."""
        return self.parts[0].data.device

    def __getitem__(self, rows: slice) -> "StoredMatrix":
        """Consecutive rows, as a view.   rows: a slice with a step of 1."""
        begin, end, step = rows.indices(self.shape[0])
        if step != 1:
            raise KernelError(f"rows {rows} of a stored matrix have a step of {step}: it must be 1")
        if (begin, end) == (0, self.shape[0]):  # most products are of whole matrices
            return self
        kept = (replace(part, data=part.data[a:b]) for part, a, b in self._spans(begin, max(begin, end)))
        return replace(self, parts=tuple(kept))

    def _spans(self, begin: int, end: int) -> Iterator[tuple[StoredRows, int, int]]:
        """The parts that have rows from `begin` to `end`, and which of their own rows these are; one part at least."""
        first = 0
        for number, part in enumerate(self.parts):
            count = part.data.shape[0]
            a, b = (min(max(row - first, 0), count) for row in (begin, end))
            if a < b or (begin == end and number == 0):
                yield part, a, b
            first += count


def stored(data: Tensor, kind: StoredKind, columns: int) -> StoredMatrix:
    """A matrix of one kind.   data: uint8 [rows, bytes of a row], contiguous.   Raises KernelError where it is not."""
    blocks, rest = divmod(columns, kind.length)
    if data.dtype != torch.uint8 or data.dim() != 2 or rest or data.shape[1] != blocks * kind.size:
        raise KernelError(
            f"a matrix of {columns} columns in {kind.name} is {data.dtype} {list(data.shape)}: it must be torch.uint8 "
            f"[rows, {blocks * kind.size}], with columns in multiples of {kind.length}"
        )
    return StoredMatrix((StoredRows(data, kind),), columns)


def stacked(matrices: tuple[StoredMatrix, ...]) -> StoredMatrix:
    """The matrix of all rows, one matrix's below the other's; nothing is copied.

    Raises KernelError where their columns differ, or the order of these.
    """
    columns = {matrix.columns for matrix in matrices}
    if len(columns) != 1:
        raise KernelError(f"matrices of {sorted(columns)} columns cannot be stacked: the columns must be equal")
    order = matrices[0].order
    for matrix in matrices:
        same = matrix.order is order or (
            matrix.order is not None and order is not None and torch.equal(matrix.order, order)
        )
        if not same:
            raise KernelError("matrices whose columns are in different orders cannot be stacked")
    return StoredMatrix(tuple(part for matrix in matrices for part in matrix.parts), columns.pop(), order)


def joined(matrix: StoredMatrix) -> StoredMatrix:
    """The same matrix with neighbouring parts of one kind in one place, so that one launch multiplies them."""
    groups = [list(parts) for _, parts in groupby(matrix.parts, lambda part: part.kind)]
    parts = (
        group[0] if len(group) == 1 else StoredRows(torch.cat([part.data for part in group]), group[0].kind)
        for group in groups
    )
    return replace(matrix, parts=tuple(parts))


def in_order(x: Tensor, matrix: StoredMatrix) -> tuple[Tensor, StoredMatrix]:
    """Rows x [T, columns] with their columns as the blocks have them, and the matrix without an order."""
    if matrix.order is None:
        return x, matrix
    return x.index_select(1, matrix.order), replace(matrix, order=None)


def columns_of(matrix: StoredMatrix, begin: int, end: int) -> StoredMatrix:
    """Columns of a matrix, which are copied.   Raises KernelError where a block would be cut."""
    if matrix.order is not None:
        raise KernelError(f"columns {begin} to {end} are spread over the blocks, which have columns in another order")
    parts = []
    for part in matrix.parts:
        (first, cut), (last, cut_too) = divmod(begin, part.kind.length), divmod(end, part.kind.length)
        if cut or cut_too:
            raise KernelError(f"columns {begin} to {end} cut blocks of {part.kind.length} numbers in {part.kind.name}")
        parts.append(replace(part, data=part.data[:, first * part.kind.size : last * part.kind.size].contiguous()))
    return StoredMatrix(tuple(parts), end - begin)
