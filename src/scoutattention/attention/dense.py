"""Attention where every block is resident: to all blocks, or to those that the true query chooses."""

from collections.abc import Hashable

import torch
from torch import Tensor

from ..cache.store import KVStore
from ..kernels.ops import Ops
from ..types import Rope
from .base import Attend, StepStats
from .choose import Chooser


class ResidentAttention:
    """Decode attention over a store without slots. Nothing is far, so nothing is predicted.

    Without a chooser it is full attention: the oracle and the baseline of everything else.
    """

    def __init__(self, store: KVStore, ops: Ops, scale: float, chooser: Chooser | None) -> None:
        self._store = store
        self._ops = ops
        self._scale = scale
        self._chooser = chooser
        self._chosen = torch.zeros((), dtype=torch.int64, device=ops.device)

    def plan(self, batch: int) -> Hashable:
        """See `Attention.plan`."""
        view = self._store.plan_step(batch)
        if self._chooser is not None:
            self._chooser.begin(view)
        return batch, view.width

    def begin(self, rope: Rope) -> Attend:
        """See `Attention.begin`."""
        self._store.begin_step()
        self._chosen.zero_()
        return self._attend

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        store = self._store
        store.append(layer, k, v)
        if self._chooser is None:
            blocks = store.near(layer)
        else:
            choice = self._chooser.choose(layer, q)
            blocks = store.near_pages(choice.blocks, choice.valid)
        self._chosen += blocks.length.count_nonzero()
        pool = store.near_pool
        return self._ops.partial(q, pool.k[layer], pool.v[layer], blocks, self._scale).out.to(q.dtype)

    def end(self) -> StepStats:
        """See `Attention.end`."""
        self._store.end_step()
        return StepStats(chosen_blocks=int(self._chosen))
