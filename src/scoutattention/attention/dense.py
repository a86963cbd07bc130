"""Attention where every block is resident: to all blocks, or to those that the true query chooses."""

from collections.abc import Hashable

import torch
from torch import Tensor

from ..cache.pool import BlockPool, PackedPool
from ..cache.store import KVStore
from ..kernels.ops import Ops
from ..types import BlockList, Partial, Rope
from .base import Attend, StepStats
from .choose import Chooser


class ResidentAttention:
    """Decode attention over a store whose pages are all on the device. Nothing is far, so nothing is predicted.

    Without a chooser it is full attention: the oracle and the baseline of everything else. Packed pages, which have
    their open blocks in a pool of their own, need a chooser, if only one that takes them all.
    """

    def __init__(self, store: KVStore, ops: Ops, scale: float, chooser: Chooser | None) -> None:
        self._store = store
        self._ops = ops
        self._scale = scale
        self.chooser = chooser
        self._chosen = torch.zeros((), dtype=torch.int64, device=ops.device)

    def plan(self, batch: int) -> Hashable:
        """See `Attention.plan`."""
        view = self._store.plan_step(batch)
        self._chooses = self.chooser is not None
        if self.chooser is not None:
            self.chooser.begin(view)
            self._chooses = self._store.slots is not None or not self.chooser.takes_all
        return batch, view.width, self._chooses

    def begin(self, rope: Rope) -> Attend:
        """See `Attention.begin`."""
        self._store.begin_step()
        self._chosen.zero_()
        return self._attend

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        store = self._store
        store.append(layer, k, v)
        if self.chooser is None or not self._chooses:
            return self._partial(store.near_pool, layer, q, store.near(layer)).out.to(q.dtype)
        choice = self.chooser.choose(layer, q)
        if store.slots is None:
            blocks = store.near_pages(choice.blocks, choice.valid)
            return self._partial(store.near_pool, layer, q, blocks).out.to(q.dtype)
        closed = self._partial(store.pages.pool, layer, q, store.page_list(choice.blocks, choice.valid))
        opened = self._partial(store.near_pool, layer, q, store.near(layer))
        return self._ops.merge(closed, opened).out.to(q.dtype)

    def _partial(self, pool: BlockPool | PackedPool, layer: int, q: Tensor, blocks: BlockList) -> Partial:
        self._chosen += blocks.length.count_nonzero()
        return self._ops.partial(q, pool.k[layer], pool.v[layer], blocks, self._scale)

    def end(self) -> StepStats:
        """See `Attention.end`."""
        self._store.end_step()
        return StepStats(chosen_blocks=int(self._chosen))
