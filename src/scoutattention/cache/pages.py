"""Pages: every closed block of every sequence has one."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels.ops import Ops
from ..types import CloseRequest, Pools, StepRows
from .batch import Batch
from .pool import BlockPool, PackedPool

Digest = Callable[[Tensor, Tensor, Tensor], None]
"""Called with the keys of blocks that close, their places and their rows; see `Digests.put`."""


class Pages:
    """Host pages of the running sequences, one table row each.

    table: int32 [R, NB], the page of each block of the sequence in that row.
    A row's pages are reserved when it is admitted, so a running sequence never lacks one.
    """

    def __init__(self, pool: BlockPool | PackedPool, digest: Digest, rows: int, max_blocks: int, ops: Ops) -> None:
        self.pool = pool
        self._digest = digest
        self.table = torch.zeros((rows, max_blocks), dtype=torch.int32, device=ops.device)
        self._ops = ops
        self._taken: list[list[int]] = [[] for _ in range(rows)]

    def admit(self, row: int, num_blocks: int) -> None:
        """Reserve pages for a sequence of at most `num_blocks` blocks."""
        pages = self._taken[row] = self.pool.take(num_blocks)
        self.table[row, :num_blocks] = torch.tensor(pages, dtype=torch.int32)

    def release(self, row: int) -> None:
        """Give back every page of a row."""
        self.pool.give(self._taken[row])
        self._taken[row] = []

    def move(self, source: int, target: int) -> None:
        """Let row `target` (released) take over the sequence of row `source`."""
        self.table[target] = self.table[source]
        self._taken[target], self._taken[source] = self._taken[source], []

    def page(self, row: int, block: int) -> int:
        """The page of one block."""
        return self._taken[row][block]

    def write_prompt(self, layer: int, row: int, k: Tensor, v: Tensor) -> None:
        """Close a prompt's full blocks in one layer.   k, v: [blocks, H, P, D]."""
        pool, places = self.pool, layer * self.pool.capacity + self.table[row, : k.shape[0]].long()
        self._digest(k, places, torch.full((1,), row, device=places.device))
        self._ops.write_blocks((k, v), (pool.k.flatten(0, 1), pool.v.flatten(0, 1)), places)

    def close(self, batch: Batch, opened: Pools, *, in_place: bool) -> None:
        """Close the blocks of all layers that a step has filled, in pools [L, S, H, P, D]; only queues work.

        in_place: whether open blocks are in their pages already.   The digests of blocks that are not full yet may be
        written too, where the device works by itself: nothing reads them before they are written again.
        """
        if not in_place:
            what = CloseRequest(StepRows(batch.index, batch.closed, batch.fill), batch.entry, self.table)
            self._ops.close_blocks(opened, (self.pool.k, self.pool.v), what)
        some = slice(None) if self._ops.deferred else list(batch.full)
        index, closed, entry = batch.index[some], batch.closed[some], batch.entry[some]
        layers = len(opened[0])
        layer = torch.arange(layers, device=entry.device)[:, None] * self.pool.capacity
        places = (layer + self.table[index, closed]).flatten()
        self._digest(opened[0][:, entry].flatten(0, 1), places, index.repeat(layers))
