"""Cholesky factors of many small matrices on an NVIDIA GPU, and the inverses of the factors, a program each."""

import torch
from torch import Tensor

from ..reference_factors import Factors
from ..triton.base import check
from .base import CudaLaunch

SIDE = 16
"""Rows of a program's threads, and columns."""
NUMBERS = {torch.float32: ("float", 8), torch.float64: ("double", 4)}
"""What a dtype is called, and how many rows of a matrix a thread can hold parts of."""


def has_kernel(matrices: Tensor) -> bool:
    """Whether there is a kernel for matrices [n, m, m]."""
    return matrices.dtype in NUMBERS and matrices.shape[-1] <= SIDE * NUMBERS[matrices.dtype][1]


def factors_launch(matrices: Tensor, made: Factors) -> CudaLaunch:
    """The launch of `factors`."""
    n, m, _ = matrices.shape
    name, most = NUMBERS[matrices.dtype]
    parts = most if m > SIDE * most // 2 else most // 2
    defines: dict[str, int | str] = {"NUMBER": name, "PARTS": parts}
    arguments: tuple[Tensor | int, ...] = (matrices, made.factor, made.inverse, m, *matrices.stride()[:2])
    return CudaLaunch("factors", "factors", (n,), SIDE * SIDE, arguments, defines)


def factors(matrices: Tensor) -> Factors:
    """The factors of symmetric positive matrices [n, m, m], in one launch; see `reference_factors.factors`.

    Entries of a row must be neighbours.   Raises KernelError where they are not, or the dtype is no wide one.
    """
    n, m, _ = matrices.shape
    check("matrices", matrices, (None, m, m), *NUMBERS)
    made = Factors(*(matrices.new_empty(n, m, m) for _ in range(2)))
    factors_launch(matrices, made).run()
    return made
