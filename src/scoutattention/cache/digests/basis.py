"""The basis in which a prompt's keys have few dimensions that matter to its queries."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.ops import Ops

LEAST_TOKENS = 4
"""Prompt tokens below which, as a multiple of the head dim, correlations between channels are not to be trusted."""
PRIOR = 1e-3
"""Of the mean second moment of a channel, what is added to each: no direction is without queries and keys."""
PARTS = 8
"""Parts of a prompt whose second moments are computed side by side."""
SIZE_STEP = 24
"""Powers of two from one size of keys to the next. Keys between 2^-12 and 2^12 have size 1."""


class Basis(NamedTuple):
    """Main dimensions of keys, most important first.

    of_keys, of_queries: [..., D, D], a row for each dimension, of which a key's or query's product is its part. The
    products of the first dimensions of both are the best estimate of queries times keys, up to a constant for each
    query; those of all dimensions are exact.
    """

    of_keys: Tensor
    of_queries: Tensor


def fit_basis(q: Tensor, k: Tensor, ops: Ops) -> Basis:
    """The basis whose first dimensions keep most of what queries q [n, H, G, D] tell of the keys k [T, H, D].

    With second moments C_q of the queries, C_k of the keys about their mean, and a factor C_q = L L^T, the products of
    queries and keys are those of L^-1 q, which has no preferred direction, and L^T k, whose main directions come first.
    Of a prompt with fewer than LEAST_TOKENS * D tokens, or whose numbers are not finite, main dimensions are channels.
    """
    queries, keys = q.transpose(1, 2).flatten(0, 1).float(), k.float()  # [n * G, H, D], [T, H, D]
    size = _size(keys)
    keys = keys / size
    keys = keys - keys.mean(0)
    sides = queries, keys
    if k.shape[0] < LEAST_TOKENS * k.shape[-1]:
        basis = _channels(*(x.square().mean(0) for x in sides))
    else:
        basis = _main_dims(torch.stack([_second_moments(x) for x in sides]), ops)
    size = size.view(-1, 1, 1)
    return Basis(basis.of_keys / size, basis.of_queries * size)


def _second_moments(x: Tensor) -> Tensor:
    """Products of channels, summed over x [n, H, D]: [H, D, D].

    In parts, so that a GPU uses all its processors. A part is every PARTS-th position, so that nothing is copied where
    x is contiguous.
    """
    n, H, D = x.shape
    each = n // PARTS
    parts, rest = x[: PARTS * each].reshape(each, PARTS * H, D).transpose(0, 1), x[PARTS * each :].transpose(0, 1)
    moments: Tensor = (parts.mT @ parts).view(PARTS, H, D, D).sum(0) + rest.mT @ rest
    return moments


def _channels(queries: Tensor, keys: Tensor) -> Basis:
    """The channels, most important first.   queries, keys: [H, D], second moments of each channel."""
    queries, keys = (_comparable(x.diag_embed()).diagonal(dim1=-2, dim2=-1) for x in (queries, keys))
    order = (queries * keys).argsort(-1, descending=True)
    chosen, scale = torch.eye(keys.shape[-1], device=keys.device)[order], queries.sqrt().gather(-1, order)[..., None]
    return Basis(chosen * scale, chosen / scale)


def _main_dims(moments: Tensor, ops: Ops) -> Basis:
    """The basis of second moments [2, H, D, D] of queries and keys, or of multiples of them."""
    queries, keys = _comparable(moments)
    factor = torch.linalg.cholesky_ex(queries).L
    main = ops.main_dims(factor.mT @ keys @ factor)
    of_queries = torch.linalg.solve_triangular(factor, main, upper=False, left=False)
    return Basis(main @ factor.mT, of_queries)


def _comparable(moment: Tensor) -> Tensor:
    """Second moments [..., D, D] over that of a mean channel, plus `PRIOR`. Those with one that is not finite are 0.

    Where one is not, a channel's own is not either, nor is the mean: all quotients are 0, or no number.
    """
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    comparable = (moment / mean).nan_to_num(0, posinf=0, neginf=0)
    comparable.diagonal(dim1=-2, dim2=-1).add_(PRIOR)
    return comparable


def _size(keys: Tensor) -> Tensor:
    """A power of two for each head of keys [T, H, D], over which they are numbers that float16 holds well: mostly 1.

    Returns [1, H, 1].
    """
    largest: Tensor = torch.linalg.vector_norm(keys, torch.inf, (0, 2), keepdim=True)
    steps = torch.frexp(largest.nan_to_num(1, 1)).exponent / SIZE_STEP
    return torch.exp2(SIZE_STEP * steps.round().clamp(-5, 5))
