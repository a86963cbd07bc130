"""Factors and main directions of many small square matrices at once, in plain PyTorch."""

from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """Cholesky factors of positive matrices, and their inverses: lower triangular, [n, m, m] each."""

    factor: Tensor
    inverse: Tensor


def factors(matrices: Tensor) -> Factors:
    """The factors of symmetric positive matrices [n, m, m]; where one is not positive, its numbers mean nothing."""
    factor = torch.linalg.cholesky_ex(matrices).L
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return Factors(factor, torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False))


def main_dims(moments: Tensor) -> Tensor:
    """The eigenvectors of second moments, symmetric [n, D, D]: rows [n, D, D], by falling eigenvalues, of any sign."""
    vectors: Tensor = torch.linalg.eigh(moments).eigenvectors
    return vectors.flip(-1).mT
