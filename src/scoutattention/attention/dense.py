"""Attention where every block is resident: to all blocks, or to those that the true query chooses."""

from torch import Tensor

from ..cache.store import KVStore
from ..kernels.cpu import Workers
from ..types import Rope
from .base import Attend, StepStats
from .choose import Chooser


class ResidentAttention:
    """Decode attention over a store without slots. Nothing is far, so nothing is predicted.

    Without a chooser it is full attention: the oracle and the baseline of everything else.
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
            blocks = store.near(layer)
        else:
            choice = self.chooser.choose(layer, q)
            blocks = store.near_pages(choice.blocks, choice.valid)
        self._chosen += int(blocks.length.count_nonzero())
        pool = store.near_pool
        return self._workers.partial(q, pool.k[layer], pool.v[layer], blocks, self._scale).out.to(q.dtype)

    def end(self) -> StepStats:
        """See `Attention.end`."""
        self._store.end_step()
        return StepStats(chosen_blocks=self._chosen)
