"""Exact attention over a cache in host memory: every layer's whole cache is copied to the device, a layer ahead."""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from typing_extensions import override

from ...attention.choose import every_block
from ...attention.step import Attend, Attention, Step, StepStats
from ...cache.batch import Batch
from ...cache.pool import BlockPool
from ...cache.store import KVStore
from ...kernels.ops import Ops
from ...runtime.pinned import STEP, pieces
from ...runtime.streams import SideStream
from ...types import BlockList, Partial, Rope


class FetchAllAttention(Attention[Step]):
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
        self.exchange = store.exchange

    @override
    def prepare(self, rows: Sequence[int], real: int | None = None) -> Step:
        batch = self._store.prepare(rows)
        return Step(batch, (batch.size, batch.width, bool(batch.full)))

    @override
    def start(self, step: Step) -> None:
        if not self._begun:
            self._fetch(0)
            self._begun = True
        self._side.join()  # for the first layer: a graph cannot wait for what is queued outside it
        self.exchange.send()

    @override
    def begin(self, step: Step, rope: Rope) -> Attend:
        batch, store = step.batch, self._store
        store.begin(batch)
        every = every_block(batch, store.heads)
        pages = self._ops.page_list(store.select(every.blocks, every.valid, batch))

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
            if layer > 0:
                self._side.join()
            with ExitStack() as failing:
                failing.callback(self._side.join)  # a capture that ends with a copy beside it hides what was raised
                if layer + 1 < len(self._pages.k):
                    self._fetch(layer + 1)
                store.append(layer, k, v, batch)
                merged = self._attended(layer, q, pages, batch)
                failing.pop_all()
            return merged.out.to(q.dtype)

        return attend

    def _attended(self, layer: int, q: Tensor, pages: BlockList, batch: Batch) -> Partial:
        """Attention to a layer's closed blocks in its buffer, and to its open block."""
        pool, here = self._store.near_pool, layer % 2
        closed = self._ops.partial(q, self._k[here], self._v[here], pages, self._scale)
        opened = self._store.open_blocks(batch)
        return self._ops.merge(closed, self._ops.partial(q, pool.k[layer], pool.v[layer], opened, self._scale))

    @override
    def finish(self, step: Step) -> None:
        self._store.close(step.batch)

    @override
    def count(self, step: Step) -> None:
        self._store.end(step.batch)

    @override
    def end(self, step: Step, counts: Sequence[int]) -> StepStats:
        self._fetch(0)
        layers, _, heads = self._pages.k.shape[:3]
        blocks = sum(step.batch.counts) * layers * heads
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
