"""The CPU's share of a layer where the device is a GPU: handed over from its stream, and taken there."""

import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..cache.pool import PackedPool
from ..cache.store import KVStore
from ..kernels.cpu import Workers
from ..kernels.handover import Handover, PartialCall
from ..kernels.host_functions import HostQueue
from ..kernels.ops import Ops
from ..types import BlockList, Partial
from .far import Far, FarWork

Kind = Literal["scout", "true", "late"]
"""Who asks: a scout, ahead; the true query, for what it chose; the true query, for what a scout missed or spoilt."""


@dataclass(frozen=True)
class _Lane:
    """Where one kind of call of one layer goes through host memory: always the same, so that a graph can hold it."""

    q: Tensor
    pages: BlockList
    result: Partial
    handover: Handover

    def start(self, q: Tensor, pages: BlockList) -> None:
        for here, there in ((self.q, q), (self.pages.index, pages.index), (self.pages.length, pages.length)):
            here.copy_(there, non_blocking=True)
        self.handover.start()

    def wait(self, device: torch.device) -> Partial:
        self.handover.wait()
        out, lse, mean_key = self.result
        there = out.to(device, non_blocking=True), lse.to(device, non_blocking=True)
        return Partial(*there, None if mean_key is None else mean_key.to(device, non_blocking=True))


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
        lane = self._start(layer, "scout" if predicted else "true", q, self._store.page_list(blocks, absent))
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
        pool, pages = self._store.pages.pool, self._store.page_list(blocks, absent)
        if isinstance(pool, PackedPool):
            return self._start(layer, "late", q, pages).wait(self._ops.device)
        return self._ops.partial(q, pool.k[layer], pool.v[layer], pages, self._scale)

    def settle(self) -> None:
        """See `FarWork.settle`."""
        for (layer, *_), lane in self._lanes.items():
            lane.handover.check()
            if lane.handover.started_s >= self._began:
                self.waited_s[layer] += lane.handover.waited_s
                self.hidden_s += max(0.0, lane.handover.ran_s - lane.handover.waited_s)

    def _start(self, layer: int, kind: Kind, q: Tensor, pages: BlockList) -> _Lane:
        key = (layer, kind, q.shape[0], pages.index.shape[-1])
        if key not in self._lanes:
            self._lanes[key] = self._make_lane(layer, q, pages, with_mean_key=kind == "scout" and self._correct)
        self._lanes[key].start(q, pages)
        return self._lanes[key]

    def _make_lane(self, layer: int, like: Tensor, pages: BlockList, *, with_mean_key: bool) -> _Lane:
        pinned = self._ops.device.type == "cuda"

        def host(shape: torch.Size, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, pin_memory=pinned)

        q, listed = host(like.shape), BlockList(*(host(table.shape, torch.int32) for table in pages))
        result = Partial(host(like.shape), host(like.shape[:3]), host(like.shape) if with_mean_key else None)
        pool = self._store.pages.pool
        call = PartialCall(q, pool.k[layer], pool.v[layer], listed, self._scale)
        handover = Handover(self._workers, call, result, functions=self._functions, timeout_s=self._timeout_s)
        return _Lane(q, listed, result, handover)
