"""Inverses of large positive matrices, several at once, in few operations that a GPU can run side by side."""

import torch
from torch import Tensor

from ...kernels.ops import Ops

BLOCK = 128
"""Rows of a block; `Ops.factors` of a GPU holds as many."""


def inverse(matrices: Tensor, ops: Ops) -> Tensor:
    """The inverses of symmetric positive matrices, float32 [N, m, m], which are overwritten. It waits for nothing.

    By the sweep operator (Goodnight, 1979) on blocks of rows: after the sweep of all of them, a matrix is its negative
    inverse. PyTorch's own functions take large matrices one after the other, in many small kernels.
    """
    for first in range(0, matrices.shape[-1], BLOCK):
        block = slice(first, first + BLOCK)
        _sweep(matrices, block, ops.factors(matrices[:, block, block]).inverse)
    return matrices.neg_()


def _sweep(matrices: Tensor, block: slice, factor: Tensor) -> None:
    """Sweep matrices on a block of rows.   factor: [N, b, b], the inverse of the Cholesky factor of that block."""
    scaled = matrices[:, :, block] @ factor.mT
    matrices.baddbmm_(scaled, scaled.mT, alpha=-1)
    torch.neg(factor.mT, out=scaled[:, block])
    torch.bmm(scaled, factor, out=matrices[:, :, block])
    torch.bmm(factor.mT, scaled.mT, out=matrices[:, block])
