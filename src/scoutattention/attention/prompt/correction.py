"""Calibration: what a layer's normed input is, from an earlier layer's, fitted in closed form on text."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

PRIOR = 300
"""The penalty on a correction, in positions: as strong as so many of average size where nothing is to be corrected."""
ITERATIONS = 3
"""Of the subspace iteration that finds the main directions; always from the same start, so that fits are repeatable."""


class Correction(NamedTuple):
    """What is added to normed inputs z [n, E]: z @ left @ right.T.   left, right: [E, dims], or one for each layer."""

    left: Tensor
    right: Tensor

    def of(self, layer: int) -> "Correction":
        """One layer's."""
        return Correction(self.left[layer], self.right[layer])

    def apply(self, z: Tensor) -> Tensor:
        """The corrected z [n, E], in the dtype of z."""
        return z + (z.to(self.left.dtype) @ self.left @ self.right.mT).to(z.dtype)

    def joined(self, other: "Correction") -> "Correction":
        """The sum of both."""
        return Correction(torch.cat((self.left, other.left), -1), torch.cat((self.right, other.right), -1))

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> "Correction":
        """The same in another dtype, and on another device."""
        return Correction(self.left.to(device, dtype), self.right.to(device, dtype))


Operator = Callable[[Tensor], Tensor]
"""A matrix by what it makes of the columns of another one, [E, m] -> [E, m]."""


def fit_low_rank(z: Tensor, change: Tensor, weight: Tensor, dims: int) -> Correction:
    """A correction of `dims` dimensions that changes z by nearly `change`, for a layer whose queries are z @ weight.T.

    Ridge regression, and of its result the directions that move the queries most: reduced-rank regression (Izenman,
    1975) in the metric of the query projection.

    z: [n, E], finite normed inputs as a scout sees them.   change: [n, E], what the true ones are more than that.
    weight: [Q, E].   Returns float32, of fewer dims where E or Q is less.
    """
    z, change, weight = z.float(), change.float(), weight.float()
    dims = min(dims, *weight.shape)
    full, effect = _ridge(z, change)
    main = torch.randn(weight.shape[0], dims, generator=torch.Generator().manual_seed(0)).to(z.device)
    for _ in range(ITERATIONS):
        main = torch.linalg.qr(weight @ effect(weight.T @ main)).Q
    back = weight.T @ main
    left, moments = full(back), effect(back)
    return Correction(left, moments @ torch.linalg.pinv(back.T @ moments, rtol=1e-5, hermitian=True))


def _ridge(z: Tensor, change: Tensor) -> tuple[Operator, Operator]:
    """The ridge regression of `change` on z, and the second moments of what it makes of z: [E, E] each.

    With fewer positions than channels, only a matrix [n, n] of positions is solved (Saunders et al., 1998).
    """
    penalty = PRIOR * z.square().mean()
    if z.shape[0] < z.shape[1]:
        positions = torch.cholesky_inverse(_factor(z @ z.T, penalty))

        def fitted(x: Tensor) -> Tensor:
            return x - penalty * (positions @ x)

        return (
            lambda x: z.T @ (positions @ (change @ x)),
            lambda x: change.T @ fitted(fitted(change @ x)),
        )
    gram = z.T @ z
    full = torch.cholesky_solve(z.T @ change, _factor(gram, penalty))
    moments = full.T @ gram @ full
    return full.matmul, moments.matmul


def _factor(gram: Tensor, penalty: Tensor) -> Tensor:
    """The Cholesky factor of a matrix [m, m] of products, with a penalty on its diagonal."""
    factor: Tensor = torch.linalg.cholesky_ex(gram + penalty * torch.eye(gram.shape[0], device=gram.device)).L
    return factor
