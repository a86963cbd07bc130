"""The guard: compares a scout's choice with the true query's, and attends again to blocks that were missed or wrong."""

from ..cache.store import KVStore
from ..kernels.requests import LayerGuard
from .choose import Wanted
from .step import ScoutStep


class Guard:
    """Checks the scout of every layer against the layer's true query, for each KV head by itself.

    A KV head is spoilt where the scout's error may weigh more than `limit` in the merge; blocks are missed where the
    true query wishes for more than `limit` that the scout did not choose. Both are attended to with the true query.
    """

    def __init__(self, limit: float, store: KVStore) -> None:
        """`limit`: the part of a KV head's attention, as `ScoutConfig.guard` says."""
        self._limit = limit
        self._store = store

    def of(self, step: ScoutStep, layer: int, wanted: Wanted, ahead: Wanted) -> LayerGuard:
        """What a layer's parts are joined by.   wanted: of the true query.   ahead: of the scout."""
        pool, choice = self._store.pages.pool, wanted.choice
        return LayerGuard(
            wanted=(wanted.blocks, wanted.absent, choice.wishes),
            scouted=(ahead.blocks, ahead.absent),
            rows=step.masks.scouted[layer],
            limit=self._limit,
            counts=step.tally.guarded[layer],
            table=self._store.pages.table[step.batch.rows],
            pool=(pool.k[layer], pool.v[layer]),
        )
