"""A decode step's attention on a CPU: the native kernels."""

from torch import Tensor

from ...runtime.memory import CPU
from ...runtime.packed import Blocks
from ...runtime.workers import Workers
from ...types import BlockList, Lateness, Partial, Sifting
from .. import reference
from ..ops import Ranked
from ..plain import PlainOps
from .choice import Late, Sifted, blend, find_late, sift
from .merge import corrected, doubt, merge
from .top_blocks import rank_blocks


class NativeOps(PlainOps):
    """The native kernels, on the threads of `workers`; the rest is PyTorch's, as in `PlainOps`."""

    def __init__(self, workers: Workers) -> None:
        super().__init__(CPU)
        self._workers = workers

    def partial(self, q: Tensor, k: Blocks, v: Blocks, blocks: BlockList, scale: float) -> Partial:
        """See `Ops.partial`."""
        return self._workers.partial(q, k, v, blocks, scale)

    def score_digests(self, q: Tensor, digests: Tensor, pages: Tensor, scale: float) -> Tensor:
        """See `Ops.score_digests`."""
        return self._workers.score_digests(q * scale, digests, pages)

    def score_key_codes(self, q: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor, scale: float) -> Tensor:
        """See `Ops.score_key_codes`."""
        return self._workers.score_key_codes(q * scale, codes, bounds, pages)

    def rank_blocks(
        self, scores: Tensor, closed: Tensor, count: int, always: tuple[int, int], *, largest: bool
    ) -> Ranked:
        """See `Ops.rank_blocks`."""
        return Ranked(*rank_blocks(self._workers, scores, closed, count, always, largest=largest))

    def sift(self, what: Sifting) -> Sifted:
        """See `Ops.sift`."""
        return sift(self._workers, what)

    def blend(self, interest: Tensor, wishes: Tensor, rows: Tensor, kept: float) -> None:
        """See `Ops.blend`."""
        blend(self._workers, interest, wishes, rows, kept)

    def find_late(self, what: Lateness) -> Late:
        """See `Ops.find_late`."""
        return find_late(self._workers, what)

    def doubt(self, far: Partial, near: Partial, q: Tensor, q_hat: Tensor) -> Tensor:
        """See `Ops.doubt`."""
        return doubt(self._workers, far, near, q, q_hat)

    def corrected(self, far: Partial, q: Tensor, q_hat: Tensor, scale: float) -> Partial:
        """See `Ops.corrected`."""
        return corrected(self._workers, far, q, q_hat, scale)

    def merge(self, a: Partial, b: Partial, without: Tensor | None = None) -> Partial:
        """See `Ops.merge`."""
        return merge(self._workers, a if without is None else reference.left_out(a, without), b)
