"""Calibration: what a layer's normed input is, from an earlier layer's, fitted in closed form on text."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels import reference

PRIOR = 300
"""The penalty on a correction, in positions: as strong as so many of average size where nothing is to be corrected."""
ITERATIONS = 3
"""Of the subspace iteration that finds the main directions; always from the same start, so that fits are repeatable."""
LEAST_PENALTY = 1e-30
"""So that inputs that are all zero have a factor, too."""
LEAST_STRENGTH = 1e-5
"""Of the strongest direction; what moves queries less is rounding, and is left out."""


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

    def where(self, helps: Tensor) -> "Correction":
        """The same where bool [] holds, else none."""
        return Correction(self.left.where(helps, 0), self.right.where(helps, 0))

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> "Correction":
        """The same in another dtype, and on another device."""
        return Correction(self.left.to(device, dtype), self.right.to(device, dtype))


Operator = Callable[[Tensor], Tensor]
"""A matrix by what it makes of the columns of another one, [E, m] -> [E, m]."""


def fit_low_rank(
    z: Tensor, change: Tensor, weight: Tensor, dims: int, main_dims: Callable[[Tensor], Tensor] = reference.main_dims
) -> Correction:
    """A correction of `dims` dimensions that changes z by nearly `change`, for a layer whose queries are z @ weight.T.

    Ridge regression, and of its result the directions that move the queries most: reduced-rank regression (Izenman,
    1975) in the metric of the query projection.

    z: [n, E], finite normed inputs as a scout sees them.   change: [n, E], what the true ones are more than that.
    weight: [Q, E].   main_dims: see `Ops`.   Returns float32, of fewer dims where E or Q is less.
    """
    z, change, weight = z.float(), change.float(), weight.float()
    full, effect = _ridge(z, change)
    main = _start(weight.shape[0], min(dims, *weight.shape), z.device)
    for _ in range(ITERATIONS):
        main = torch.linalg.qr(weight @ effect(weight.T @ main)).Q
    back = weight.T @ main
    left, moments = full(back), effect(back)
    small = (back.T @ moments).nan_to_num(0, posinf=0, neginf=0)
    rows = main_dims(small[None])[0]
    strength = (rows @ small * rows).sum(-1)
    inverse = (1 / strength).where(strength > LEAST_STRENGTH * strength.amax(), 0)
    return Correction(left, moments @ rows.T * inverse @ rows)


def _start(size: int, dims: int, device: torch.device) -> Tensor:
    """Where the subspace iteration starts, the same on every processor of a kind: [size, dims]."""
    return torch.randn(size, dims, generator=torch.Generator(device).manual_seed(0), device=device)


def _ridge(z: Tensor, change: Tensor) -> tuple[Operator, Operator]:
    """The ridge regression of `change` on z, and the second moments of what it makes of z: [E, E] each.

    With fewer positions than channels, only a matrix [n, n] of positions is solved (Saunders et al., 1998).
    """
    penalty = (PRIOR * z.square().mean()).clamp(min=LEAST_PENALTY)
    if z.shape[0] < z.shape[1]:
        factor = _factor(z @ z.T, penalty)
        half = torch.linalg.solve_triangular(factor, torch.eye(len(z), device=z.device), upper=False)
        positions = half.T @ half
        left_over = penalty * positions  # of what is fitted to

        def fitted(y: Tensor) -> Tensor:
            return torch.addmm(y, left_over, y, alpha=-1)

        return lambda x: z.T @ (positions @ (change @ x)), lambda x: change.T @ fitted(fitted(change @ x))
    gram = z.T @ z
    full = torch.cholesky_solve(z.T @ change, _factor(gram, penalty))
    moments = full.T @ gram @ full
    return full.matmul, moments.matmul


def _factor(gram: Tensor, penalty: Tensor) -> Tensor:
    """The Cholesky factor of a matrix [m, m] of products, with a penalty on its diagonal."""
    factor: Tensor = torch.linalg.cholesky_ex(gram + penalty * torch.eye(gram.shape[0], device=gram.device)).L
    return factor
