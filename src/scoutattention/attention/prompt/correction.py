"""Calibration: what a layer's normed input is, from an earlier layer's, fitted in closed form on text."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

PRIOR = 300
"""The penalty on a correction, in positions: as strong as so many of average size where nothing is to be corrected."""
ITERATIONS = 2
"""Of the subspace iteration that finds the main directions; always from the same start, so that fits are repeatable."""
LEAST_PENALTY = 1e-30
"""So that inputs that are all zero have a factor, too."""
LEAST_STRENGTH = 1e-6
"""Of all directions together; what moves queries much less is rounding, and is left out."""
SHIFT = 1e-12
"""Of a column's square, what is added to it, so that the factor of all products exists in float64."""
LEAST_SQUARE = 1e-200
"""So that columns that are all zero have a factor, too."""


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


def fit_low_rank(z: Tensor, change: Tensor, weight: Tensor, dims: int) -> Correction:
    """A correction of `dims` dimensions that changes z by nearly `change`, for a layer whose queries are z @ weight.T.

    z, change, weight: see `fit_from`.   Returns float32, of fewer dims where E or Q is less.
    """
    return fit_from(start(weight, dims), z, change, weight)


def start(weight: Tensor, dims: int) -> Tensor:
    """The start of the subspace iteration for a weight [Q, E]: random [Q, dims], equal on devices of one kind."""
    device = weight.device
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(weight.shape[0], min(dims, *weight.shape), generator=generator, device=device)


def fit_from(main: Tensor, z: Tensor, change: Tensor, weight: Tensor) -> Correction:
    """The correction of `fit_low_rank`, from a start. It queues work, and waits for nothing.

    Ridge regression, and of its result the directions that move the queries most: reduced-rank regression (Izenman,
    1975) in the metric of the query projection. A correction depends on the space that the columns of `main` span, and
    not on the columns: so these only have to stay independent.

    main: [Q, dims], see `start`.   z: [n, E], finite normed inputs as a scout sees them.   change: [n, E], what the
    true ones are more than that.   weight: [Q, E].   Returns float32.
    """
    change, weight = change.float(), weight.float()
    full, effect = _ridge(z, change)
    for _ in range(ITERATIONS):
        main = _independent(weight @ effect(weight.T @ main))
    back = weight.T @ main
    left, moments = full(back), effect(back)
    return Correction(left, moments @ _inverse(back.T @ moments))


def _independent(columns: Tensor) -> Tensor:
    """Columns [Q, dims] that span the same space, and are orthonormal but where rounding decides.

    By the Cholesky factor of their products (shifted CholeskyQR, Fukaya et al., 2020). In float64, one pass keeps all
    directions that float32 can tell from rounding.
    """
    columns = columns.double()
    products = columns.T @ columns
    products.diagonal().mul_(1 + SHIFT).add_(LEAST_SQUARE)
    orthonormal: Tensor = torch.linalg.solve_triangular(_factor(products), columns.T, upper=False)
    return orthonormal.T.float()


def _inverse(strengths: Tensor) -> Tensor:
    """The inverse of a symmetric matrix [dims, dims], but for its directions that are much weaker than LEAST_STRENGTH.

    A direction of strength s has s / (s^2 + c^2), with a threshold c (Tikhonov, 1963): nearly 1 / s, or nearly 0.
    """
    strengths = strengths.double()
    squares = strengths @ strengths.T
    diagonal = squares.diagonal()
    diagonal.add_(LEAST_STRENGTH**2 * diagonal.sum() + LEAST_SQUARE)
    return torch.cholesky_solve(strengths, _factor(squares)).float()


def _ridge(z: Tensor, change: Tensor) -> tuple[Operator, Operator]:
    """The ridge regression of `change` on z, and the second moments of what it makes of z, as operators.

    With fewer positions than channels, only a matrix [n, n] of positions is solved (Saunders et al., 1998).
    """
    by_position = z.shape[0] < z.shape[1]
    gram, z = _products(z if by_position else z.T), z.float()
    penalty = (PRIOR / z.numel() * gram.diagonal().sum()).clamp(min=LEAST_PENALTY)
    held_back = gram if by_position else gram.clone()
    held_back.diagonal().add_(penalty)
    if by_position:
        half = torch.linalg.solve_triangular(_factor(held_back), torch.eye(len(z), device=z.device), upper=False)
        positions = half.T @ half
        left_over = penalty * positions  # of what is fitted to

        def fitted(y: Tensor) -> Tensor:
            return torch.addmm(y, left_over, y, alpha=-1)

        return lambda x: z.T @ (positions @ (change @ x)), lambda x: change.T @ fitted(fitted(change @ x))
    full = torch.cholesky_solve(z.T @ change, _factor(held_back))
    moments = full.T @ gram @ full
    return full.matmul, moments.matmul


def _products(rows: Tensor) -> Tensor:
    """Products of rows [m, n] with each other, float32 [m, m]. A GPU's matrix units add those of 16 bits in float32."""
    if rows.is_cuda and rows.dtype.itemsize == 2 and torch.version.hip is None:
        products: Tensor = torch.mm(rows, rows.T, out_dtype=torch.float32)
        return products
    rows = rows.float()
    return rows @ rows.T


def _factor(gram: Tensor) -> Tensor:
    """The Cholesky factor of a positive matrix [m, m] of products."""
    factor: Tensor = torch.linalg.cholesky_ex(gram).L
    return factor
