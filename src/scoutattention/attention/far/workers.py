"""Far attention where the main thread is the device: it submits jobs to the native workers, and waits for them."""

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from ...cache.pool import BlockPool, PackedPool
from ...kernels.ops import Ops
from ...runtime.workers import Job, Workers
from ...types import PageSelection, Partial
from .work import CallKind, FarTimes, FarTransport, Pending


class WorkerTransport(FarTransport):
    """Calls become jobs of native threads, which run while the main thread goes on."""

    def __init__(self, pool: BlockPool | PackedPool, ops: Ops, workers: Workers, scale: float) -> None:
        """`pool`: the host's pages."""
        self._pool = pool
        self._ops = ops
        self._workers = workers
        self._scale = scale
        self.reset()

    @override
    def reset(self) -> None:
        self._hidden_s = self._waited_s = 0.0

    @override
    def start(self, layer: int, kind: CallKind, q: Tensor, what: PageSelection, *, with_mean_key: bool) -> Pending:
        k, v, pages = self._pool.k[layer], self._pool.v[layer], self._ops.page_list(what)
        job = self._workers.submit(q, k, v, pages, self._scale, with_mean_key=with_mean_key)
        return _PendingJob(job, self)

    @override
    def attend(self, layer: int, q: Tensor, what: PageSelection) -> Partial:
        return self.start(layer, "late", q, what, with_mean_key=False).wait()

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

    @override
    def wait(self) -> Partial:
        partial = self.job.wait()
        self.transport.note(self.job)
        return partial
