"""Calibration: what a layer's normed input is, from an earlier layer's, fitted in closed form on text."""

from collections.abc import Iterable
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


def fit_each(problems: Iterable[Problem], dims: int, ops: Ops) -> Correction:
    """The corrections of N layers, from problems of equal sizes. Work is queued; nothing waits for it.

    Ridge regression, and of its result the directions that move the queries most: reduced-rank regression (Izenman,
    1975) in the metric of the query projection. A correction depends on the space that the columns of `main` span, and
    not on the columns: so these only have to stay independent.

    Problems are taken one by one, and weights are not kept.   Returns float32 [N, E, dims], of fewer dims where E or Q
    is less.
    """
    ridge = _ridge(problems, ops)
    main = _start(ridge, dims)
    for _ in range(ITERATIONS):
        main = _independent(ridge.seen.mT @ ridge.kept(ridge.seen @ main), ops)
    back = ridge.seen @ main
    kept = ridge.kept(back)
    left = ridge.inverse @ back
    if ridge.inputs:
        left = torch.stack([z.T.float() @ one for z, one in zip(ridge.inputs, left, strict=True)])
    right = torch.stack([rows.T.float() @ one for rows, one in zip(ridge.rows, kept, strict=True)])
    return Correction(left, right @ _inverse(back.mT @ kept, ops))


class _Ridge(NamedTuple):
    """Ridge regression of `change` on z, for N problems; m is n or E, whichever is less.

    With fewer positions than channels, only matrices of positions are inverted (Saunders et al., 1998).

    gram: [N, m, m], the products of the positions of z with each other, or those of its channels.
    inverse: [N, m, m], of `gram` plus the penalty.
    rows: [m, E] for each problem: the change, or the products of the channels of z with the change.
    seen: [N, m, Q], the queries of `rows`.
    inputs: z [n, E] of each problem with fewer positions than channels, else none.
    """

    gram: Tensor
    inverse: Tensor
    rows: list[Tensor]
    seen: Tensor
    inputs: list[Tensor]

    def kept(self, y: Tensor) -> Tensor:
        """What the regression keeps of columns y = rows @ x, [N, m, c].

        rows.T @ kept(rows @ x) is x times the second moments of the changes that the regression predicts.
        """
        y = self.gram @ (self.inverse @ y)
        return self.gram @ (self.inverse @ y) if self.inputs else self.inverse @ y


def _ridge(problems: Iterable[Problem], ops: Ops) -> _Ridge:
    grams, rows, seen, inputs = [], [], [], []
    for z, change, weight in problems:
        by_position = z.shape[0] < z.shape[1]
        grams.append(product(z, z.T) if by_position else product(z.T, z))
        rows.append(change if by_position else product(z.T, change))
        seen.append(product(rows[-1], weight.T))
        inputs += [z] if by_position else []
    gram = torch.stack(grams)
    held_back = gram.clone()
    diagonal = held_back.diagonal(dim1=-2, dim2=-1)
    diagonal.add_((PRIOR / z.numel() * diagonal.sum(-1, keepdim=True)).clamp(min=LEAST_PENALTY))
    return _Ridge(gram, inverse(held_back, ops), rows, torch.stack(seen), inputs)


def _start(ridge: _Ridge, dims: int) -> Tensor:
    """The start of the subspace iteration: the same random [Q, dims] for all problems, [N, Q, dims].

    Equal on devices of one kind.
    """
    queries, device = ridge.seen.shape[-1], ridge.seen.device
    dims = min(dims, queries, ridge.rows[0].shape[-1])
    random = torch.randn(queries, dims, generator=torch.Generator(device).manual_seed(0), device=device)
    return random.expand(len(ridge.rows), -1, -1)


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
