"""Decode steps as CUDA graphs: what is queued kernel by kernel once is replayed for every step with an equal key."""

import gc
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

MOST = 32
"""Graphs that are kept; the one that was not used for longest goes."""
FIRST_SEEN = 2
"""A key is captured when it comes up so often: one that never comes again is not worth it."""

SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Sizes that batches are padded to, so that few graphs serve batches that change all the time."""

T = TypeVar("T")

Step = Callable[[], Tensor]
"""step() -> logits [B, vocab]: queues work, and waits for nothing."""


def padded(size: int, most: int) -> int:
    """The size that a batch is padded to, which is at most `most` or its own."""
    return max(size, min(most, next((each for each in SIZES if each >= size), size)))


class Captured(NamedTuple, Generic[T]):
    """Work that was queued once.   replay: queues it again.   outputs: where each replay leaves what comes of it."""

    replay: Callable[[], None]
    outputs: T


class Recorder(Protocol):
    """What captures work."""

    def capture(self, work: Callable[[], T]) -> Captured[T]:
        """Note what `work` queues, without doing it. Raises where it would wait for the device."""
        ...


class CudaGraphs(Recorder):
    """Captures into CUDA graphs, which share one pool of memory: only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    @override
    def capture(self, work: Callable[[], T]) -> Captured[T]:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with no_collection(), torch.cuda.graph(graph, pool=self._pool):
            outputs = work()
        return Captured(graph.replay, outputs)


@contextmanager
def no_collection() -> Iterator[None]:
    """Let no garbage be found meanwhile: a dead engine would let go of pinned memory, which breaks a capture off."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Graphs:
    """Runs steps, and captures a step as a CUDA graph when its key comes a second time.

    not_replayed: steps so far that ran without a graph, or were captured.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._seen: dict[Hashable, int] = {}
        self._captured: OrderedDict[Hashable, Captured[Tensor]] = OrderedDict()
        self._latest: tuple[Hashable, Captured[Tensor]] | None = None
        self.not_replayed = 0

    def run(self, key: Hashable, step: Step) -> Tensor:
        """The logits of a step; they stay valid until the next one.   key: steps of equal keys queue the same work."""
        if self._latest is None or self._latest[0] != key:  # most steps are like the last one, and hashing takes long
            captured = self._find(key, step)
            if captured is None:
                return step()
            self._latest = key, captured
        _, captured = self._latest
        captured.replay()
        return captured.outputs

    def _find(self, key: Hashable, step: Step) -> Captured[Tensor] | None:
        """The captured step of this key, or None if the key has not come often enough."""
        if key not in self._captured:
            self.not_replayed += 1
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] < FIRST_SEEN:
                return None
            self._captured[key] = self._recorder.capture(step)
            if len(self._captured) > MOST:
                self._captured.popitem(last=False)
        self._captured.move_to_end(key)
        return self._captured[key]
