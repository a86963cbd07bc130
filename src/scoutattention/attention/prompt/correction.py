"""Calibration: what a layer's normed input is, from an earlier layer's, fitted in closed form on text."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.ops import Ops
from ...kernels.products import product
from .inverse import inverse

PRIOR = 300
"""The penalty on a correction, in positions: as strong as so many of average size where nothing is to be corrected."""
ITERATIONS = 2
"""Of the subspace iteration that finds the main directions; always from the same start, so that fits are repeatable."""
LEAST_PENALTY = 1e-30
"""So that inputs that are all zero have an inverse, too."""
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
        """The same where bool [] holds, or bool [L] of layers, else none."""
        helps = helps[..., None, None]
        return Correction(self.left.where(helps, 0), self.right.where(helps, 0))

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> "Correction":
        """The same in another dtype, and on another device."""
        return Correction(self.left.to(device, dtype), self.right.to(device, dtype))


class Problem(NamedTuple):
    """What a layer's correction is fitted to.

    z: [n, E], finite normed inputs as a scout sees them.   change: [n, E], what the true ones are more than that.
    weight: [Q, E], so that queries are z @ weight.T.
    """

    z: Tensor
    change: Tensor
    weight: Tensor


def fit_low_rank(problem: Problem, dims: int, ops: Ops) -> Correction:
    """A correction of `dims` dimensions that changes z by nearly `change`; see `fit_each`."""
    return fit_each([problem], dims, ops).of(0)


def fit_each(problems: Sequence[Problem], dims: int, ops: Ops) -> Correction:
    """The correction of each of several layers, from problems of equal sizes. Work is queued; nothing waits for it.

    Ridge regression, and of its result the directions that move the queries most: reduced-rank regression (Izenman,
    1975) in the metric of the query projection. A correction depends on the space that the columns of `main` span, and
    not on the columns: so these only have to stay independent.

    Returns float32 [N, E, dims], of fewer dims where E or Q is less.
    """
    ridge = _ridge(problems, ops)
    main = _start(problems[0].weight, dims).expand(len(problems), -1, -1)
    for _ in range(ITERATIONS):
        main = _independent(ridge.seen.mT @ ridge.kept(ridge.seen @ main), ops)
    back = ridge.seen @ main
    kept = ridge.kept(back)
    left, right = ridge.inverse @ back, kept
    if ridge.by_position:
        left = torch.stack([each.z.T.float() @ one for each, one in zip(problems, left, strict=True)])
    right = torch.stack([rows.T.float() @ one for rows, one in zip(ridge.rows, right, strict=True)])
    return Correction(left, right @ _inverse(back.mT @ kept, ops))


def _start(weight: Tensor, dims: int) -> Tensor:
    """The start of the subspace iteration for a weight [Q, E]: random [Q, dims], equal on devices of one kind."""
    device = weight.device
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(weight.shape[0], min(dims, *weight.shape), generator=generator, device=device)


class _Ridge(NamedTuple):
    """Ridge regression of `change` on z, for N problems; m is n where `by_position`, else E.

    With fewer positions than channels, only matrices of positions are inverted (Saunders et al., 1998).

    gram: [N, m, m], products of positions of z, or of its channels.   inverse: of these and the penalty, [N, m, m].
    rows: [m, E] of each problem: the change, or the products of channels of z with it.   seen: [N, m, Q], queries of
    these rows.
    """

    by_position: bool
    gram: Tensor
    inverse: Tensor
    rows: list[Tensor]
    seen: Tensor

    def kept(self, y: Tensor) -> Tensor:
        """Of columns [N, m, c], what rows @ x were, what the products of what is fitted are made of.

        So that rows.T @ kept(rows @ x) are the second moments, times x, of what the regression makes of z.
        """
        y = self.gram @ (self.inverse @ y)
        return self.gram @ (self.inverse @ y) if self.by_position else self.inverse @ y


def _ridge(problems: Sequence[Problem], ops: Ops) -> _Ridge:
    (n, E), N = problems[0].z.shape, len(problems)
    by_position = n < E
    rows = [each.change if by_position else product(each.z.T, each.change) for each in problems]
    gram = torch.stack([product(z, z.T) if by_position else product(z.T, z) for z, *_ in problems])
    seen = gram.new_empty(N, *gram.shape[1:2], len(problems[0].weight))
    for out, each, problem in zip(seen, rows, problems, strict=True):
        out.copy_(product(each, problem.weight.T))
    held_back = gram.clone()
    diagonal = held_back.diagonal(dim1=-2, dim2=-1)
    diagonal.add_((PRIOR / (n * E) * diagonal.sum(-1, keepdim=True)).clamp(min=LEAST_PENALTY))
    return _Ridge(by_position, gram, inverse(held_back, ops), rows, seen)


def _independent(columns: Tensor, ops: Ops) -> Tensor:
    """Columns [N, Q, dims] that span the same spaces, and are orthonormal but where rounding decides.

    By the Cholesky factor of their products (shifted CholeskyQR, Fukaya et al., 2020). In float64, one pass keeps all
    directions that float32 can tell from rounding.
    """
    columns = columns.double()
    products = columns.mT @ columns
    products.diagonal(dim1=-2, dim2=-1).mul_(1 + SHIFT).add_(LEAST_SQUARE)
    return (columns @ ops.factors(products).inverse.mT).float()


def _inverse(strengths: Tensor, ops: Ops) -> Tensor:
    """The inverses of symmetric matrices [N, dims, dims], but for directions that are much weaker than LEAST_STRENGTH.

    A direction of strength s has s / (s^2 + c^2), with a threshold c (Tikhonov, 1963): nearly 1 / s, or nearly 0.
    """
    strengths = strengths.double()
    squares = strengths @ strengths.mT
    diagonal = squares.diagonal(dim1=-2, dim2=-1)
    diagonal.add_(LEAST_STRENGTH**2 * diagonal.sum(-1, keepdim=True) + LEAST_SQUARE)
    factor = ops.factors(squares).inverse
    return (factor.mT @ (factor @ strengths)).float()
