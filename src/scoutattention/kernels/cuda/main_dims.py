"""Main dimensions of second moments on an NVIDIA GPU: eigenvectors of many small matrices, a program each."""

import torch
from torch import Tensor

from ..triton.base import ceil_div
from ..triton.digests.main_dims import COSINE, MOST_CHANNELS, SWEEPS, factor_of
from .base import CudaLaunch
from .factors import factors

MOST_WARPS = 32


def has_kernel(D: int) -> bool:
    """Whether there is a kernel for matrices of D channels."""
    return 2 < D <= MOST_CHANNELS and D % (2 * pairs_of_warp(D)) == 0


def pairs_of_warp(D: int) -> int:
    """Pairs of rows that a warp rotates at a time."""
    return ceil_div(D, 2 * MOST_WARPS)


def rotation_launch(factor: Tensor, axes: Tensor) -> CudaLaunch:
    """The launch of `main_dims`: factors [n, D, D], whose rows become axes [n, D, D]."""
    n, D, _ = factor.shape
    pairs = pairs_of_warp(D)
    warps = D // (2 * pairs)
    defines = {"D": D, "WARPS": warps, "PAIRS": pairs, "SWEEPS": SWEEPS}
    return CudaLaunch("main_dims", "main_dims", (n,), 32 * warps, (factor, axes, COSINE * COSINE), defines)


def main_dims(moments: Tensor) -> Tensor:
    """Eigenvectors of symmetric matrices with no negative eigenvalue, in the order of the plain twin: nothing waits.

    moments: float32 [n, D, D], finite.   Raises KernelError where it is not float32 and contiguous.
    """
    factor = factor_of(moments, factors)
    axes = torch.empty_like(factor)
    rotation_launch(factor, axes).run()
    return axes
