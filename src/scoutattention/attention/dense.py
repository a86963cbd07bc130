"""Attention where every block is resident: to all blocks, or to those that the true query chooses."""

from torch import Tensor

from ..cache.pool import BlockPool, PackedPool
from ..cache.store import KVStore
from ..kernels.cpu import Workers
from ..kernels.merging import merge
from ..types import BlockList, Partial, Rope
from .base import Attend, StepStats
from .choose import Chooser


class ResidentAttention:
    """Decode attention over a store whose pages are all on the device. Nothing is far, so nothing is predicted.

    Without a chooser it is full attention: the oracle and the baseline of everything else. Packed pages, which have
    their open blocks in a pool of their own, need a chooser, if only one that takes them all.
    """

    def __init__(self, store: KVStore, workers: Workers, scale: float, chooser: Chooser | None) -> None:
        self._store = store
        self._workers = workers
        self._scale = scale
        self.chooser = chooser
        self._chosen = 0

    def begin(self, batch: int, rope: Rope) -> Attend:
        """See `Attention.begin`."""
        view = self._store.begin_step(batch)
        self._chosen = 0
        if self.chooser is not None:
            self.chooser.begin(view)
        return self._attend

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        store = self._store
        store.append(layer, k, v)
        if self.chooser is None:
            return self._partial(store.near_pool, layer, q, store.near(layer)).out.to(q.dtype)
        choice = self.chooser.choose(layer, q)
        if store.slots is None:
            blocks = store.near_pages(choice.blocks, choice.valid)
            return self._partial(store.near_pool, layer, q, blocks).out.to(q.dtype)
        closed = self._partial(store.pages.pool, layer, q, store.page_list(choice.blocks, choice.valid))
        opened = self._partial(store.near_pool, layer, q, store.near(layer))
        return merge(self._workers, closed, opened).out.to(q.dtype)

    def _partial(self, pool: BlockPool | PackedPool, layer: int, q: Tensor, blocks: BlockList) -> Partial:
        self._chosen += int(blocks.length.count_nonzero())
        return self._workers.partial(q, pool.k[layer], pool.v[layer], blocks, self._scale)

    def end(self) -> StepStats:
        """See `Attention.end`."""
        self._store.end_step()
        return StepStats(chosen_blocks=self._chosen)
