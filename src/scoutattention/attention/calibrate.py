"""Calibration: what a layer's normed input is, from an earlier layer's, fitted in closed form on a prompt."""

import torch
from torch import Tensor

RIDGE = 1e-2
"""Penalty on the correction, relative to the mean square of the inputs."""
ITERATIONS = 3
"""Of the subspace iteration that finds the main directions; always from the same start, so that fits are repeatable."""


def fit_low_rank(z: Tensor, change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A correction of `rank` with z @ left @ right.T close to `change`: ridge regression, then its main directions.

    z: [n, E], finite normed inputs as a scout sees them.   change: [n, E], what the true ones are more than that.
    Returns left and right, float32 [E, rank].
    """
    z, change = z.float(), change.float()
    gram = z.T @ z
    penalty = RIDGE * gram.diagonal().mean()
    full = torch.linalg.solve(gram + penalty * torch.eye(gram.shape[0]), z.T @ change)
    effect = full.T @ gram @ full  # second moments of z @ full, whose main directions are kept
    right = torch.randn(gram.shape[0], rank, generator=torch.Generator().manual_seed(0))
    for _ in range(ITERATIONS):
        right = torch.linalg.qr(effect @ right).Q
    return full @ right, right
