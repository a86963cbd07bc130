"""The sequences of one decode step, as the tables of the cache see them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """The sequences of one decode step, in the order of the step's inputs; each is about to append one token.

    numbers: their rows in the tables, for the host.
    rows: the same, as an index into tables: a slice where the rows follow one another, which copies nothing, else
        int64 [B].   index: int64 [B] in any case.
    closed, fill, entry: int64 [B], closed blocks, tokens in the open block before the step, and its entry in the pool.
    counts: `closed`, for the host.   width: columns that the step's tables have, at least the most closed blocks.
    near: entries that the device attends to where there are slots.
    The tensors are on the device, in memory that every step of as many sequences shares.
    """

    numbers: tuple[int, ...]
    rows: slice | Tensor
    index: Tensor
    closed: Tensor
    fill: Tensor
    entry: Tensor
    counts: tuple[int, ...]
    width: int
    near: int

    @property
    def size(self) -> int:
        """Sequences."""
        return len(self.numbers)

    @property
    def consecutive(self) -> bool:
        """Whether `rows` is a slice."""
        return isinstance(self.rows, slice)


def consecutive(rows: Sequence[int]) -> slice | None:
    """The slice that selects these rows in their order, or None where there is none."""
    start = rows[0] if rows else 0
    return slice(start, start + len(rows)) if list(rows) == list(range(start, start + len(rows))) else None
