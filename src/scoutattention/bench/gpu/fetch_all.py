"""Exact attention over a cache in host memory: every layer's whole cache is copied to the device, a layer ahead."""

from collections.abc import Hashable
from contextlib import ExitStack

import torch
from torch import Tensor

from ...attention.base import Attend, StepStats
from ...cache.pool import BlockPool
from ...cache.store import KVStore
from ...kernels.ops import Ops
from ...runtime.pinned import STEP, SideStream, pieces
from ...types import BlockList, Rope


class FetchAllAttention:
    """Full attention over a store with slots, of which only those of open blocks are used.

    While a layer computes, all pages of the next one are copied on a stream beside, into one of two buffers on the
    device: the schedule of `OffloadedCache` in Hugging Face's transformers. The first layer's pages are copied between
    two steps; so the sequences must be the same in all steps that an instance takes.
    """

    def __init__(self, store: KVStore, ops: Ops, scale: float) -> None:
        """Takes the device memory of two layers' pages."""
        pages = store.pages.pool
        assert isinstance(pages, BlockPool)  # the benchmark packs none
        self._store = store
        self._ops = ops
        self._scale = scale
        self._pages = pages
        self._k, self._v = (
            torch.empty((2, *pool.shape[1:]), dtype=pool.dtype, device=ops.device) for pool in (pages.k, pages.v)
        )
        self._side = SideStream(ops.device)
        self._begun = False

    def plan(self, batch: int) -> Hashable:
        """See `Attention.plan`. Waits for the first layer here: a graph cannot wait for what is queued outside it."""
        self._view = self._store.plan_step(batch)
        if not self._begun:
            self._fetch(0)
            self._begun = True
        self._side.join()
        return batch, self._view.width

    def begin(self, rope: Rope) -> Attend:
        """See `Attention.begin`."""
        self._store.begin_step()
        view, heads = self._view, self._pages.k.shape[2]
        blocks = torch.arange(view.width, device=self._store.device).expand(view.batch, heads, -1)
        self._closed = self._store.page_list(blocks, blocks < view.closed[:, None, None])
        return self._attend

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        ops, store, pool, here = self._ops, self._store, self._store.near_pool, layer % 2
        if layer > 0:
            self._side.join()
        with ExitStack() as failing:
            failing.callback(self._side.join)  # a capture that ends with a copy beside it hides what was raised
            if layer + 1 < len(self._pages.k):
                self._fetch(layer + 1)
            store.append(layer, k, v)
            closed = ops.partial(q, self._k[here], self._v[here], self._closed, self._scale)
            near = store.near(layer)  # the open block first
            only = BlockList(near.index[..., :1], near.length[..., :1])
            opened = ops.partial(q, pool.k[layer], pool.v[layer], only, self._scale)
            merged = ops.merge(closed, opened)
            failing.pop_all()
        return merged.out.to(q.dtype)

    def end(self) -> StepStats:
        """See `Attention.end`."""
        self._store.end_step()
        self._fetch(0)
        layers, _, heads = self._pages.k.shape[:3]
        blocks = sum(self._view.counts) * layers * heads
        copied = self._pages.k.nbytes + self._pages.v.nbytes
        return StepStats(chosen_blocks=blocks, far_blocks=blocks, recalled_bytes=copied)

    def _fetch(self, layer: int) -> None:
        """Start copying a layer's pages, after all that was queued: nothing reads the buffer any more then."""
        with self._side.after(self._k, self._v):
            copy_layer(self._pages.k, layer, self._k[layer % 2])
            copy_layer(self._pages.v, layer, self._v[layer % 2])


def copy_layer(pages: Tensor, layer: int, buffer: Tensor) -> None:
    """Queue the copy of a layer of pinned pages [L, S, H, P, D] to a buffer [S, H, P, D], in pieces if need be."""
    source, target, first = pages.view(-1), buffer.view(-1), layer * buffer.numel()
    for start, end in pieces(first, first + buffer.numel(), STEP // pages.itemsize):
        target[start - first : end - first].copy_(source[start:end], non_blocking=True)
