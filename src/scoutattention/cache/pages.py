"""Pages: every closed block of every sequence has one."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels.ops import Ops
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
        rows = torch.full((1,), row, device=self._ops.device)
        self._write((k, v), self.table[row, : k.shape[0]].long(), rows, layers=range(layer, layer + 1))

    def close(self, full: list[tuple[int, int]], k: Tensor, v: Tensor) -> None:
        """Close blocks, given as (row, block), of all layers.   k, v: [L, n, H, P, D]."""
        places = [(self.page(row, block), row) for row, block in full]
        pages, rows = torch.tensor(places, device=self._ops.device).T
        self._write((k.flatten(0, 1), v.flatten(0, 1)), pages, rows.repeat(len(k)), layers=range(len(k)))

    def _write(self, blocks: tuple[Tensor, Tensor], pages: Tensor, rows: Tensor, *, layers: range) -> None:
        """Fill the pages, int64 [n], of these layers with blocks, [len(layers) * n, H, P, D], and digest them.

        rows: see `Digests.put`.
        """
        pool, layer = self.pool, torch.arange(layers.start, layers.stop, device=pages.device)
        places = (layer[:, None] * pool.capacity + pages).flatten()
        self._digest(blocks[0], places, rows)
        self._ops.write_blocks(blocks, (pool.k.flatten(0, 1), pool.v.flatten(0, 1)), places)
