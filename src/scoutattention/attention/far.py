"""The CPU's share of a layer: started ahead, taken when the layer needs it. Here the main thread meets the workers."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..cache.store import KVStore
from ..kernels.ops import Ops
from ..runtime.workers import Job, Workers
from ..types import Partial


class Far(NamedTuple):
    """What the CPU attended to in a layer.   scout: [B, H, G, D], its query where that was not the true one."""

    partial: Partial
    scout: Tensor | None

    def joined(self, ops: Ops, other: "Far") -> "Far":
        """Both, which are of different rows."""
        return Far(ops.merge(self.partial, other.partial), self.scout if other.scout is None else other.scout)

    def doubt(self, ops: Ops, q: Tensor, near: Partial) -> Tensor:
        """How much a wrong scout may have spoilt each KV head, [B, H]: see `reference.doubt`; 0 without a scout."""
        if self.scout is None:
            return q.new_zeros(q.shape[:2], dtype=torch.float32)
        return ops.doubt(self.partial, near, q, self.scout)

    def but(self, ops: Ops, spoilt: Tensor, other: Partial) -> "Far":
        """Together with another partial, which replaces that of the KV heads, bool [B, H], that are spoilt."""
        return Far(ops.merge(self.partial, other, without=spoilt), self.scout)


class FarWork:
    """Partial attention over host pages, running on native threads while the main thread goes on.

    hidden_s: seconds since `reset` that jobs ran behind the main thread's work.   waited_s: that it waited, by layer.
    """

    def __init__(self, store: KVStore, ops: Ops, workers: Workers, scale: float, *, correct: bool) -> None:
        """`correct`: see `ScoutConfig.correct_far`."""
        self._store = store
        self._ops = ops
        self._workers = workers
        self._scale = scale
        self._correct = correct
        self._jobs: dict[int, list[tuple[Job, Tensor | None]]] = {}  # with the scout, if it was one
        self.reset()

    def reset(self) -> None:
        """Set the clocks to zero, and forget jobs that a step left behind when it was broken off."""
        self._jobs.clear()
        self.hidden_s = 0.0
        self.waited_s = [0.0] * self._store.pages.pool.k.shape[0]

    def start(self, layer: int, q: Tensor, blocks: Tensor, absent: Tensor, *, predicted: bool) -> None:
        """Start attending with q [B, H, G, D] to the absent ones of `blocks` (both [B, H, N]); returns at once.

        predicted: whether q is a scout, which the true query will differ from.
        """
        pool, correct = self._store.pages.pool, predicted and self._correct
        pages = self._store.page_list(blocks, absent)
        job = self._workers.submit(q, pool.k[layer], pool.v[layer], pages, self._scale, with_mean_key=correct)
        self._jobs.setdefault(layer, []).append((job, q if predicted else None))

    def take(self, layer: int, q: Tensor) -> Far | None:
        """What was started for `layer`, whose true query is q; waits only for what is late. None where nothing was."""
        taken: Far | None = None
        for job, scout in self._jobs.pop(layer, []):
            partial = job.wait()
            self.waited_s[layer] += job.waited_s
            self.hidden_s += max(0.0, job.ran_s - job.waited_s)
            far = self._far(partial, q, scout)
            taken = far if taken is None else taken.joined(self._ops, far)
        return taken

    def join(self, near: Partial, far: Far) -> Partial:
        """Attention to what the device attended to, and to what the CPU did."""
        return self._ops.merge(near, far.partial)

    def attend(self, layer: int, q: Tensor, blocks: Tensor, absent: Tensor) -> Partial:
        """Attend with the true query to the absent ones of `blocks`, and wait for it."""
        self.start(layer, q, blocks, absent, predicted=False)
        far = self.take(layer, q)
        assert far is not None
        return far.partial

    def settle(self) -> None:
        """Bring the clocks up to date, once the step's work is done; raises KernelError where the CPU's failed."""

    def _far(self, partial: Partial, q: Tensor, scout: Tensor | None) -> Far:
        """A partial, corrected for the true query q where a scout made it."""
        if scout is not None and self._correct:
            partial = self._ops.corrected(partial, q, scout, self._scale)
        return Far(partial, scout)
