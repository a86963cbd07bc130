"""The CPU's share of a layer: attention to absent blocks, started ahead and taken when the layer needs it.

`FarWork` is what the method does with it. A transport brings calls to the CPU's workers: `WorkerTransport` where the
main thread is the device, and `far_stream.py` where a GPU's stream is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor
from typing_extensions import override

from ..cache.pool import BlockPool, PackedPool
from ..kernels.ops import Ops
from ..kernels.plain import on_device
from ..kernels.requests import CallRequest, PartialRequest
from ..runtime.workers import Job, Workers
from ..types import PageSelection, Partial, SplitChoice, SplitRequest

CallKind = Literal["scout", "true"]
"""Who asks: a scout, ahead of its layer; the true query, for its choice."""


class Pending(Protocol):
    """A far partial that was started."""

    def wait(self) -> Partial:
        """The partial, float32, on the device or in pinned host memory; waits only for what is late."""
        ...

    def wait_beside(self, near: PartialRequest) -> tuple[Partial, Partial]:
        """Attend on the device, and wait meanwhile: the near partial, and this one."""
        ...


class FarTimes(NamedTuple):
    """Seconds of the CPU's attention that ran behind other work, and that was waited for."""

    hidden_s: float
    waited_s: float


class FarTransport(Protocol):
    """How calls for far attention reach the CPU's workers, and how results come back."""

    def reset(self) -> None:
        """Begin a step: set the clocks to zero."""
        ...

    def start(self, layer: int, kind: CallKind, q: Tensor, what: PageSelection, *, with_mean_key: bool) -> Pending:
        """Start attending with q [B, H, G, D] to the selected pages; returns at once."""
        ...

    def split(
        self, layer: int, kind: CallKind, what: SplitRequest, call: CallRequest, *, with_mean_key: bool
    ) -> tuple[SplitChoice, Tensor | None, Pending]:
        """Split a choice, and start attending to what is absent; returns at once.

        Returns the pages of all candidates too, int32 [B, H, C], or None where they were not needed.
        """
        ...

    def times(self) -> FarTimes:
        """The clocks since `reset`, once the step's work is done; raises KernelError where the CPU's part failed."""
        ...


class Far(NamedTuple):
    """What the CPU attended to in a layer.

    partial: with mean keys where its weight is to be corrected.   scout: [B, H, G, D], its query where that was not the
    true one.
    """

    partial: Partial
    scout: Tensor | None


class FarCall(NamedTuple):
    """A call under way, with the scout that made it, or None where the true query did."""

    pending: Pending
    scout: Tensor | None


class FarWork:
    """Partial attention over host pages beside the device's work.

    The weight of what a scout attended to is corrected to first order for the true query, if `correct` says so.
    """

    def __init__(self, transport: FarTransport, ops: Ops, scale: float, *, correct: bool) -> None:
        """`correct`: whether the weight is corrected, as `Ablation.correct_far` says."""
        self.transport = transport
        self._ops = ops
        self._scale = scale
        self._correct = correct

    def start(self, layer: int, kind: CallKind, q: Tensor, what: PageSelection, *, predicted: bool) -> FarCall:
        """Start attending with q [B, H, G, D] to the selected pages.   predicted: whether q is a scout."""
        pending = self.transport.start(layer, kind, q, what, with_mean_key=predicted and self._correct)
        return FarCall(pending, q if predicted else None)

    def split(self, layer: int, what: SplitRequest, call: CallRequest) -> tuple[SplitChoice, Tensor | None, FarCall]:
        """Split a scout's choice, and start attending to what is absent; see `FarTransport.split`."""
        split, pages, pending = self.transport.split(layer, "scout", what, call, with_mean_key=self._correct)
        return split, pages, FarCall(pending, call.q)

    def take(self, calls: Sequence[FarCall], request: PartialRequest) -> tuple[Partial, Far | None]:
        """Attend to near blocks as requested, and take the results of a layer's calls; None where there were none."""
        if not calls:
            return self._ops.partial(*request), None
        q = request.q
        near, partial = calls[0].pending.wait_beside(request)
        parts = [Far(partial, calls[0].scout), *(Far(call.pending.wait(), call.scout) for call in calls[1:])]
        if len(parts) == 1:
            return near, parts[0]
        moved = (part._replace(partial=on_device(part.partial, q.device)) for part in parts)
        first, second = (part._replace(partial=self._corrected(part, q)) for part in moved)  # of different sequences
        scout = first.scout if second.scout is None else second.scout
        return near, Far(self._ops.merge(first.partial, second.partial), scout)

    def _corrected(self, far: Far, q: Tensor) -> Partial:
        if far.scout is None or far.partial.mean_key is None:
            return far.partial
        return self._ops.corrected(far.partial, q, far.scout, self._scale)._replace(mean_key=None)


class WorkerTransport(FarTransport):
    """Calls become jobs of native threads, which run while the main thread goes on."""

    def __init__(self, pool: BlockPool | PackedPool, ops: Ops, workers: Workers, scale: float) -> None:
        """`pool`: the host's pages."""
        self._pool = pool
        self._ops = ops
        self._workers = workers
        self._scale = scale
        self._hidden_s = self._waited_s = 0.0

    @override
    def reset(self) -> None:
        self._hidden_s = self._waited_s = 0.0

    @override
    def start(self, layer: int, kind: CallKind, q: Tensor, what: PageSelection, *, with_mean_key: bool) -> Pending:
        k, v, pages = self._pool.k[layer], self._pool.v[layer], self._ops.page_list(what)
        job = self._workers.submit(q, k, v, pages, self._scale, with_mean_key=with_mean_key)
        return _PendingJob(job, self, self._ops)

    @override
    def split(
        self, layer: int, kind: CallKind, what: SplitRequest, call: CallRequest, *, with_mean_key: bool
    ) -> tuple[SplitChoice, Tensor | None, Pending]:
        choice = self._ops.split_choice(what)
        selected = PageSelection(call.table, choice.blocks, choice.absent, call.size)
        return choice, None, self.start(layer, kind, call.q, selected, with_mean_key=with_mean_key)

    @override
    def times(self) -> FarTimes:
        return FarTimes(self._hidden_s, self._waited_s)

    def note(self, job: Job) -> None:
        """Take the times of a job that was waited for into account."""
        self._waited_s += job.waited_s
        self._hidden_s += max(0.0, job.ran_s - job.waited_s)


@dataclass(frozen=True)
class _PendingJob(Pending):
    job: Job
    transport: WorkerTransport
    ops: Ops

    @override
    def wait(self) -> Partial:
        partial = self.job.wait()
        self.transport.note(self.job)
        return partial

    @override
    def wait_beside(self, near: PartialRequest) -> tuple[Partial, Partial]:
        return self.ops.partial(*near), self.wait()
