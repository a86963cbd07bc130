"""Pages: every closed block of every sequence has one."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..kernels.ops import Ops
from ..runtime.packed import Blocks
from ..types import CloseRequest, Pools, StepRows
from .batch import Batch
from .page_runs import MOST_RUNS, copy_runs, page_runs
from .pool import BlockPool, PackedPool
from .prefix import Lineage, PrefixIndex

Digest = Callable[[Tensor, Tensor, Tensor], None]
"""Called with the keys of blocks that close, their places and whose they are; see `Digests.put`."""


class Pages:
    """Host pages of the running sequences, one table row each.

    table: int32 [R, NB], the page of each block of the sequence in that row.
    prefixes: the pages of prompts that are kept when no sequence uses them.
    A row's pages are reserved when it is admitted, so a running sequence never lacks one.
    """

    def __init__(
        self,
        pool: BlockPool | PackedPool,
        digest: Digest,
        rows: int,
        max_blocks: int,
        ops: Ops,
        prefixes: PrefixIndex | None = None,
    ) -> None:
        self.pool = pool
        self.prefixes = prefixes or PrefixIndex(most=0)
        self._digest = digest
        self.table = torch.zeros((rows, max_blocks), dtype=torch.int32, device=ops.device)
        self._ops = ops
        self._by_engines = ops.deferred and pool.k.device.type == "cpu"
        self._taken: list[list[int]] = [[] for _ in range(rows)]
        self._users = [0] * pool.capacity

    def available(self, but: Sequence[int] = ()) -> int:
        """Pages that a sequence can be given, those of other sequences' prompts too.   but: pages that must stay."""
        return self.pool.available + self.prefixes.unused(but)

    def admit(self, row: int, num_blocks: int, shared: Sequence[int] = ()) -> None:
        """Reserve pages for a sequence of at most `num_blocks` blocks; the first ones are in pages that are kept.

        Raises CapacityError, and reserves none, where too few are left.
        """
        new = num_blocks - len(shared)
        if new <= self.available(shared):
            self.prefixes.use(shared)
            self.pool.give(self.prefixes.evict(max(0, new - self.pool.available)))
        pages = self._taken[row] = [*shared, *self.pool.take(new)]
        for page in pages:
            self._users[page] += 1
        self.table[row, :num_blocks] = torch.tensor(pages, dtype=torch.int32)

    def release(self, row: int) -> None:
        """Let go of every page of a row; those of prompts that are kept stay."""
        pages, self._taken[row] = self._taken[row], []
        free = []
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page] == 0 and page in self.prefixes:
                self.prefixes.leave(page)
            elif self._users[page] == 0:
                free.append(page)
        self.pool.give(free[::-1])

    def keep(self, row: int, lineage: Lineage, names: Sequence[bytes]) -> None:
        """Keep the first blocks of a row, which have these names, in a lineage."""
        self.pool.give(self.prefixes.add(lineage, names, self._taken[row][: len(names)]))

    def adopt(self, names: Sequence[bytes], read: Callable[[Sequence[int]], Lineage | None]) -> None:
        """Keep blocks that no sequence has. `read` fills their pages, and says their lineage, or that there is none.

        At least as many pages must be available.
        """
        self.pool.give(self.prefixes.evict(max(0, len(names) - self.pool.available)))
        pages = self.pool.take(len(names))
        lineage = read(pages)
        if lineage is None:
            self.pool.give(pages)
            return
        self.pool.give(self.prefixes.add(lineage, names, pages))
        for page in reversed(pages):
            self.prefixes.leave(page)

    def forget(self) -> None:
        """Drop all kept prompts."""
        self.pool.give(self.prefixes.clear())

    def move(self, source: int, target: int) -> None:
        """Let row `target` (released) take over the sequence of row `source`."""
        self.table[target] = self.table[source]
        self._taken[target], self._taken[source] = self._taken[source], []

    def reserved(self, row: int) -> int:
        """Blocks that a row has pages for."""
        return len(self._taken[row])

    def page(self, row: int, block: int) -> int:
        """The page of one block."""
        return self._taken[row][block]

    def write_prompt(self, layer: int, row: int, k: Tensor, v: Tensor, first: int = 0) -> None:
        """Close a prompt's full blocks in one layer, from block `first` on.   k, v: [blocks, H, P, D]."""
        if not len(k):
            return
        runs = page_runs(self._taken[row][first : first + len(k)]) if self._by_engines else []
        if 0 < len(runs) <= MOST_RUNS:
            here = [run._replace(page=layer * self.pool.capacity + run.page) for run in runs]
            staged: Iterable[Blocks] = self.pool.staged(k, v, self._ops)
            for blocks, pages in zip(staged, (self.pool.k, self.pool.v), strict=True):
                copy_runs(blocks, pages, here)
            return
        places = self._places(layer, row, first, len(k))
        self._ops.write_blocks((k, v), (self.pool.k.flatten(0, 1), self.pool.v.flatten(0, 1)), places)

    def digest_prompt(self, layer: int, row: int, k: Tensor, first: int = 0) -> None:
        """Digest the same blocks, when the digests have seen the layer."""
        if not len(k):
            return
        places = self._places(layer, row, first, len(k))
        owner = layer * len(self.table) + row
        self._digest(k, places, torch.full((1,), owner, device=places.device))

    def _places(self, layer: int, row: int, first: int, count: int) -> Tensor:
        return layer * self.pool.capacity + self.table[row, first : first + count].long()

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
        layer = torch.arange(len(opened[0]), device=entry.device)[:, None]
        places, owners = layer * self.pool.capacity + self.table[index, closed], layer * len(self.table) + index
        self._digest(opened[0][:, entry].flatten(0, 1), places.flatten(), owners.flatten())
