"""Attention on an NVIDIA GPU: Triton's operations, and CUDA C++ where instructions count."""

import torch
from torch import Tensor
from typing_extensions import override

from ...errors import ConfigError
from ...types import TopBlocks
from ..reference_factors import Factors
from ..triton.ops import TritonOps
from . import choice, factors, main_dims, scores


class CudaOps(TritonOps):
    """The operations of `TritonOps`. Of many sizes, scores, choices, factors and main dimensions are CUDA C++."""

    def __init__(self, device: torch.device) -> None:
        """Raises ConfigError where the device is no NVIDIA GPU."""
        if device.type != "cuda" or torch.version.hip is not None:
            raise ConfigError("kernels='cuda' are for an NVIDIA GPU, and the device is none: set kernels to 'auto'")
        super().__init__(device)

    @override
    def project(self, q: Tensor, basis: Tensor) -> Tensor:
        if q.shape[-1] % 4 or q.shape[2] > scores.MOST_HEADS:
            return super().project(q, basis)
        return scores.project(q.contiguous(), basis)

    @override
    def main_dims(self, moments: Tensor) -> Tensor:
        if not main_dims.has_kernel(moments.shape[-1]):
            return super().main_dims(moments)
        return main_dims.main_dims(moments)

    @override
    def factors(self, matrices: Tensor) -> Factors:
        return factors.factors(matrices) if factors.has_kernel(matrices) else super().factors(matrices)

    @override
    def score_key_codes(
        self, q: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor, closed: Tensor, scale: float
    ) -> Tensor:
        if not scores.has_kernel(q.shape[-1], codes.shape[3]):
            return super().score_key_codes(q, codes, bounds, pages, closed, scale)
        return scores.score_key_codes(q.contiguous(), codes, bounds, pages, closed, scale)

    @override
    def top_blocks(
        self, scores: Tensor, closed: Tensor, count: int, always: tuple[int, int], *, largest: bool
    ) -> TopBlocks:
        if not choice.has_kernel(scores.shape[-1], count):
            return super().top_blocks(scores, closed, count, always, largest=largest)
        return choice.top_blocks(scores, closed, count, always, largest=largest)
