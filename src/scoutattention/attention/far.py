"""The CPU's share of a layer: started ahead, taken when the layer needs it. The only file where two clocks meet."""

from torch import Tensor

from ..cache.store import KVStore
from ..kernels.cpu import Job, Workers
from ..kernels.reference import corrected, merge
from ..types import Partial


class FarWork:
    """Partial attention over host pages, running on native threads while the main thread goes on.

    hidden_s, unhidden_s: seconds since `reset` that jobs ran behind the main thread's work, and that it waited.
    """

    def __init__(self, store: KVStore, workers: Workers, scale: float, *, correct: bool) -> None:
        """`correct`: see `ScoutConfig.correct_far`."""
        self._store = store
        self._workers = workers
        self._scale = scale
        self._correct = correct
        self._jobs: dict[int, list[tuple[Job, Tensor | None]]] = {}  # with the scout to correct for, if any
        self.reset()

    def reset(self) -> None:
        """Set the clocks to zero."""
        self.hidden_s = self.unhidden_s = 0.0

    def start(self, layer: int, q: Tensor, blocks: Tensor, absent: Tensor, *, predicted: bool) -> None:
        """Start attending with q [B, H, G, D] to the absent ones of `blocks` (both [B, H, N]); returns at once.

        predicted: whether q is a scout, which the true query will differ from.
        """
        pool, correct = self._store.pages.pool, predicted and self._correct
        pages = self._store.page_list(blocks, absent)
        job = self._workers.submit(q, pool.k[layer], pool.v[layer], pages, self._scale, with_mean_key=correct)
        self._jobs.setdefault(layer, []).append((job, q if correct else None))

    def join(self, layer: int, q: Tensor, near: Partial) -> Partial:
        """Merge what was started for `layer`, whose true query is q, into `near`, waiting only for what is late."""
        for job, scout in self._jobs.pop(layer, []):
            far = job.wait()
            near = merge(near, far if scout is None else corrected(far, q, scout, self._scale))
            self.unhidden_s += job.waited_s
            self.hidden_s += max(0.0, job.ran_s - job.waited_s)
        return near
