"""The CPU's share of a layer where the device is a GPU: handed over from its stream, and taken there."""

import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..cache.pool import PackedPool
from ..cache.store import KVStore
from ..kernels.ops import Ops
from ..runtime.handover import Handover, PartialCall
from ..runtime.host_functions import HostQueue
from ..runtime.workers import Workers
from ..types import BlockList, Listing, Partial
from .far import Far, FarWork

Kind = Literal["scout", "true", "late"]
"""Who asks: a scout, ahead; the true query, for what it chose; the true query, for what a scout missed or spoilt."""


@dataclass(frozen=True)
class _Lane:
    """Where one kind of call of one layer goes through host memory: always the same, so that a graph can hold it.

    result: float32 numbers, those of a partial one after the other, see `_split`.
    """

    q: Tensor
    pages: BlockList
    result: Tensor
    handover: Handover

    def start(self, ops: Ops, q: Tensor, what: Listing) -> None:
        ops.hand_over(q, what, (self.q, self.pages))
        self.handover.start()

    def wait(self, device: torch.device) -> Partial:
        self.handover.wait()
        with_mean_key = self.handover.result.mean_key is not None
        return _split(self.result.to(device, non_blocking=True), self.q.shape, with_mean_key=with_mean_key)


def _split(numbers: Tensor, shape: torch.Size, *, with_mean_key: bool) -> Partial:
    """Numbers as a partial of queries [B, H, G, D]: out, mean keys, lse."""
    size, rows = shape.numel(), shape[:-1].numel()
    out, lse = numbers[:size].view(shape), numbers[-rows:].view(shape[:-1])
    return Partial(out, lse, numbers[size : 2 * size].view(shape) if with_mean_key else None)


class StreamedFarWork(FarWork):
    """`FarWork` that the device's stream starts and waits for, so that the host only queues.

    What is attended to in the layer itself the device reads from pinned pages: it is little, and the CPU would be late.
    """

    def __init__(
        self,
        store: KVStore,
        ops: Ops,
        workers: Workers,
        scale: float,
        *,
        correct: bool,
        functions: HostQueue,
        timeout_s: float,
    ) -> None:
        """functions: what queues host functions on the current stream.   timeout_s: the longest wait for the CPU."""
        self._functions = functions
        self._timeout_s = timeout_s
        self._lanes: dict[tuple[int, Kind, int, int], _Lane] = {}
        self._under_way: dict[int, list[tuple[_Lane, Tensor | None]]] = {}
        super().__init__(store, ops, workers, scale, correct=correct)

    def reset(self) -> None:
        """See `FarWork.reset`."""
        super().reset()
        self._under_way.clear()
        self._began = time.perf_counter()

    def start(self, layer: int, q: Tensor, blocks: Tensor, absent: Tensor, *, predicted: bool) -> None:
        """See `FarWork.start`."""
        lane = self._start(layer, "scout" if predicted else "true", q, self._store.listing(blocks, absent))
        self._under_way.setdefault(layer, []).append((lane, q if predicted else None))

    def take(self, layer: int, q: Tensor) -> Far | None:
        """See `FarWork.take`."""
        taken: Far | None = None
        for lane, scout in self._under_way.pop(layer, []):
            far = self._far(lane.wait(self._ops.device), q, scout)
            taken = far if taken is None else taken.joined(self._ops, far)
        return taken

    def attend(self, layer: int, q: Tensor, blocks: Tensor, absent: Tensor) -> Partial:
        """See `FarWork.attend`."""
        pool, what = self._store.pages.pool, self._store.listing(blocks, absent)
        if isinstance(pool, PackedPool):
            return self._start(layer, "late", q, what).wait(self._ops.device)
        return self._ops.partial(q, pool.k[layer], pool.v[layer], self._ops.page_list(what), self._scale)

    def settle(self) -> None:
        """See `FarWork.settle`."""
        for (layer, *_), lane in self._lanes.items():
            lane.handover.check()
            if lane.handover.started_s >= self._began:
                self.waited_s[layer] += lane.handover.waited_s
                self.hidden_s += max(0.0, lane.handover.ran_s - lane.handover.waited_s)

    def _start(self, layer: int, kind: Kind, q: Tensor, what: Listing) -> _Lane:
        key = (layer, kind, q.shape[0], what.blocks.shape[-1])
        if key not in self._lanes:
            self._lanes[key] = self._make_lane(layer, q, what, with_mean_key=kind == "scout" and self._correct)
        self._lanes[key].start(self._ops, q, what)
        return self._lanes[key]

    def _make_lane(self, layer: int, like: Tensor, what: Listing, *, with_mean_key: bool) -> _Lane:
        pinned = self._ops.device.type == "cuda"

        def host(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, pin_memory=pinned)

        q, listed = host(*like.shape), BlockList(*(host(*what.blocks.shape, dtype=torch.int32) for _ in range(2)))
        result = host((1 + with_mean_key) * like.numel() + like[..., 0].numel())
        pool = self._store.pages.pool
        call = PartialCall(q, pool.k[layer], pool.v[layer], listed, self._scale)
        partial = _split(result, like.shape, with_mean_key=with_mean_key)
        handover = Handover(self._workers, call, partial, functions=self._functions, timeout_s=self._timeout_s)
        return _Lane(q, listed, result, handover)
