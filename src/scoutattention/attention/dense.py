"""Attention where every block is resident: to all blocks, or to those that the true query chooses."""

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from ..cache.batch import Batch
from ..cache.pool import BlockPool, PackedPool
from ..cache.store import KVStore
from ..types import BlockList, Partial, Rope
from .choose import Choice, Chooser, every_block
from .softmax import Softmax
from .step import Attend, Attention, Step, StepStats


class ResidentAttention(Attention[Step]):
    """Decode attention over a store whose pages are all on the device. Nothing is far, so nothing is predicted.

    Without a chooser it is full attention: the oracle and the baseline of everything else. Packed pages, which have
    their open blocks in a pool of their own, need a chooser, if only one that takes them all.
    """

    def __init__(self, store: KVStore, softmax: Softmax, chooser: Chooser | None) -> None:
        self._store = store
        self._ops = softmax.ops
        self._softmax = softmax
        self.chooser = chooser
        self.exchange = store.exchange

    @override
    def prepare(self, rows: Sequence[int], real: int | None = None) -> Step:
        batch = self._store.prepare(rows, real)
        if self.chooser is not None:
            self.chooser.prepare(batch)
        return Step(batch, (batch.size, batch.consecutive, batch.width, bool(batch.full), self._chooses(batch)))

    @override
    def start(self, step: Step) -> None:
        self.exchange.send()

    @override
    def begin(self, step: Step, rope: Rope) -> Attend:
        batch, store = step.batch, self._store
        store.begin(batch)
        self.exchange.counts.zero_()
        everything, chooses = every_block(batch, store.heads), self._chooses(batch)
        pages = None if chooses else self._near_pages(everything, batch)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
            store.append(layer, k, v, batch)
            if pages is not None:
                return self._out(layer, self._partial(store.near_pool, layer, q, pages)).to(q.dtype)
            assert self.chooser is not None
            takes_all = self.chooser.takes_all(batch)
            choice = everything if takes_all else self.chooser.judge(layer, q, batch)
            return self._out(layer, self._chosen(layer, q, choice, batch)).to(q.dtype)

        return attend

    @override
    def finish(self, step: Step) -> None:
        self._store.close(step.batch)

    @override
    def count(self, step: Step) -> None:
        self._store.end(step.batch)

    @override
    def end(self, step: Step, counts: Sequence[int]) -> StepStats:
        return StepStats(chosen_blocks=counts[0])

    def _chooses(self, batch: Batch) -> bool:
        """Whether layers attend to a list of their own."""
        if self.chooser is None:
            return False
        return self._store.slots is not None or not self.chooser.takes_all(batch)

    def _out(self, layer: int, keys: Partial) -> Tensor:
        return keys.out if self._softmax.sink_logits is None else self._softmax.beside_sink(layer, keys)

    def _chosen(self, layer: int, q: Tensor, choice: Choice, batch: Batch) -> Partial:
        store = self._store
        if store.slots is None:
            return self._partial(store.near_pool, layer, q, self._near_pages(choice, batch))
        pages = self._ops.page_list(store.select(choice.blocks, choice.valid, batch))
        closed = self._partial(store.pages.pool, layer, q, pages)
        opened = self._partial(store.near_pool, layer, q, store.slots.near(layer, batch))
        return self._ops.merge(closed, opened)

    def _near_pages(self, choice: Choice, batch: Batch) -> BlockList:
        return self._store.near_pages(choice.candidates, choice.picks, choice.wishes.shape[-1], batch)

    def _partial(self, pool: BlockPool | PackedPool, layer: int, q: Tensor, blocks: BlockList) -> Partial:
        if layer == 0:  # every layer attends to as many
            self.exchange.counts[0] += self._store.num_layers * blocks.length.count_nonzero()
        return self._ops.partial(q, pool.k[layer], pool.v[layer], blocks, self._softmax.scale)
