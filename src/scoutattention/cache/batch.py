"""The sequences of one decode step, as the tables of the cache see them."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """The sequences of one decode step, in the order of the step's inputs; each is about to append one token.

    size: sequences.   real: those of them that are any; the others pad the batch, have no blocks, and are forgotten.
    numbers: their rows in the tables, for the host.
    rows: the same, as an index into tables: a slice where the rows follow one another, which copies nothing, else
        int64 [B].   consecutive: whether `rows` is a slice.   index: int64 [B] in any case.
    closed, fill, entry: int64 [B], closed blocks, tokens in the open block before the step, and its entry in the pool.
    counts: `closed`, for the host.   full: places of those whose open block the step fills, for the host.
    width: columns that the step's tables have, at least the most closed blocks.
    near: entries that the device attends to where there are slots.
    The tensors are on the device, in memory that every step of as many sequences shares.
    """

    size: int
    real: int
    numbers: tuple[int, ...]
    rows: slice | Tensor
    consecutive: bool
    index: Tensor
    closed: Tensor
    fill: Tensor
    entry: Tensor
    counts: tuple[int, ...]
    full: tuple[int, ...]
    width: int
    near: int
