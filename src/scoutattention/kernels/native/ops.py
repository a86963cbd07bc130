"""A decode step's attention on a CPU, by native kernels, which check every tensor that they are given."""

import torch
from torch import Tensor
from typing_extensions import override

from ...runtime.memory import CPU
from ...runtime.packed import Blocks
from ...runtime.workers import Workers
from ...types import BlockList, GuardFinding, GuardRequest, Partial, SplitChoice, SplitRequest, TopBlocks
from .. import reference
from ..plain import PlainOps


class NativeOps(PlainOps):
    """The native kernels, on the threads of `workers`; what is not native is PyTorch's, as in `PlainOps`.

    Products with 2-bit keys are rounded to 8 bits. Of equal wishes the earlier block comes first.
    """

    def __init__(self, workers: Workers) -> None:
        super().__init__(CPU)
        self._workers = workers
        self._native = workers.native

    @override
    def partial(self, q: Tensor, k: Blocks, v: Blocks, blocks: BlockList, scale: float) -> Partial:
        return self._workers.partial(q, k, v, blocks, scale)

    @override
    def score_min_max(self, q: Tensor, digests: Tensor, pages: Tensor, scale: float) -> Tensor:
        return self._native.score_min_max(_floats(q * scale), digests, pages)

    @override
    def score_key_codes(self, q: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor, scale: float) -> Tensor:
        return self._native.score_key_codes(_floats(q * scale), codes, bounds, pages)

    @override
    def top_blocks(
        self, scores: Tensor, closed: Tensor, count: int, always: tuple[int, int], *, largest: bool
    ) -> TopBlocks:
        return TopBlocks(*self._native.top_blocks(scores, closed, count, always, largest))

    @override
    def split_choice(self, what: SplitRequest) -> SplitChoice:
        return SplitChoice(*self._native.split_choice(what))

    @override
    def update_interest(self, interest: Tensor, wishes: Tensor, rows: Tensor, kept: float) -> None:
        self._native.update_interest(interest, wishes, rows, kept)

    @override
    def find_late(self, what: GuardRequest) -> GuardFinding:
        return GuardFinding(*self._native.find_late(what))

    @override
    def scout_error(self, far: Partial, near: Partial, q: Tensor, q_hat: Tensor) -> Tensor:
        return self._native.scout_error(far, near, _floats(q), _floats(q_hat))

    @override
    def corrected(self, far: Partial, q: Tensor, q_hat: Tensor, scale: float) -> Partial:
        return far._replace(lse=self._native.corrected_lse(far, _floats(q), _floats(q_hat), scale))

    @override
    def merge(self, a: Partial, b: Partial, without: Tensor | None = None) -> Partial:
        a = a if without is None else reference.left_out(a, without)
        return Partial(*self._native.merge(a, b))


def _floats(x: Tensor) -> Tensor:
    """The form in which the native kernels read queries."""
    return x.to(torch.float32).contiguous()
