"""The basis in which a prompt's keys have few dimensions that matter to its queries."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.ops import Ops
from ...kernels.products import product

LEAST_TOKENS = 4
"""Prompt tokens below which, as a multiple of the head dim, correlations between channels are not to be trusted."""
PRIOR = 1e-3
"""Of the mean second moment of a channel, what is added to each: no direction is without queries and keys."""
MATRICES = 64
"""Second moments that are computed side by side, of parts of a prompt, and added."""
SIZE_STEP = 24
"""Powers of two from one size of keys to the next. Keys between 2^-12 and 2^12 have size 1."""


class Seen(NamedTuple):
    """What digests see of a layer of a prompt.   q: [n, H, G, D], some positions' queries.   k: [T, H, D]."""

    q: Tensor
    k: Tensor


class Basis(NamedTuple):
    """Main dimensions of keys, most important first.

    of_keys, of_queries: [..., D, D], a row for each dimension, of which a key's or query's product is its part. The
    products of the first dimensions of both are the best estimate of queries times keys, up to a constant for each
    query; those of all dimensions are exact.
    """

    of_keys: Tensor
    of_queries: Tensor


def fit_bases(prompts: Sequence[Seen], ops: Ops) -> Basis:
    """Bases [N, H, D, D] whose first dimensions keep most of what queries tell of keys, of N layers of a prompt.

    With second moments C_q of the queries, C_k of the keys about their mean, and a factor C_q = L L^T, the products of
    queries and keys are those of L^-1 q, which has no preferred direction, and L^T k, whose main directions come first.
    Of a prompt with fewer than LEAST_TOKENS * D tokens, or whose numbers are not finite, main dimensions are channels.
    """
    sizes = _sizes(prompts)
    moments = torch.stack([_moments(*each) for each in zip(prompts, sizes, strict=True)], 1)  # [2, N, H, D, D]
    tokens, _, D = prompts[0].k.shape
    N, H = moments.shape[1:3]
    queries, keys = _comparable(moments).flatten(1, 2)
    basis = _channels(queries, keys) if tokens < LEAST_TOKENS * D else _main_dims(queries, keys, ops)
    of_keys, of_queries = (part.view(N, H, D, D) for part in basis)
    sizes = sizes[..., None]
    return Basis(of_keys / sizes, of_queries * sizes)


def _moments(prompt: Seen, size: Tensor) -> Tensor:
    """Second moments of queries, and of keys about their mean, in their own dtype: float32 [2, H, D, D].

    size: [H, 1], what keys are divided by.
    """
    keys = prompt.k / size
    keys -= keys.mean(0)
    return torch.stack([_second_moments(prompt.q), _second_moments(keys.to(prompt.k.dtype)[:, :, None])])


def _second_moments(x: Tensor) -> Tensor:
    """Products of channels, summed over x [n, H, G, D]: [H, D, D].

    In parts of MATRICES in all, so that a GPU uses all its processors. With c parts a head, each has every c-th
    position, so that nothing is copied where x is contiguous.
    """
    n, H, G, D = x.shape
    parts = max(1, min(n, MATRICES // (H * G)))
    whole = n - n % parts
    made = [_products_of_channels(x[:whole].reshape(-1, parts * H * G, D))]
    if whole < n:
        made.append(_products_of_channels(x[whole:].flatten(1, 2)))
    return torch.cat(made).view(-1, H, G, D, D).sum((0, 2))


def _products_of_channels(x: Tensor) -> Tensor:
    """Of x [n, m, D]: float32 [m, D, D]."""
    by_head = x.transpose(0, 1)
    return product(by_head.mT, by_head)


def _channels(queries: Tensor, keys: Tensor) -> Basis:
    """The channels, most important first, of second moments [n, D, D]."""
    queries, keys = (moments.diagonal(dim1=-2, dim2=-1) for moments in (queries, keys))
    order = (queries * keys).argsort(-1, descending=True)
    chosen, scale = torch.eye(keys.shape[-1], device=keys.device)[order], queries.sqrt().gather(-1, order)[..., None]
    return Basis(chosen * scale, chosen / scale)


def _main_dims(queries: Tensor, keys: Tensor, ops: Ops) -> Basis:
    """The bases of second moments [n, D, D] of queries and keys, or of multiples of them."""
    factor, inverse = ops.factors(queries)
    main = ops.main_dims(factor.mT @ keys @ factor)
    return Basis(main @ factor.mT, main @ inverse)


def _comparable(moment: Tensor) -> Tensor:
    """Second moments [..., D, D] over that of a mean channel, plus `PRIOR`. Those with one that is not finite are 0.

    Where one is not, a channel's own is not either, nor is the mean: all quotients are 0, or no number.
    """
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    comparable = (moment / mean).nan_to_num(0, posinf=0, neginf=0)
    comparable.diagonal(dim1=-2, dim2=-1).add_(PRIOR)
    return comparable


def _sizes(prompts: Sequence[Seen]) -> Tensor:
    """A power of two for each head, over which keys are numbers that float16 holds well: mostly 1.   [N, H, 1]."""
    largest = torch.stack([torch.linalg.vector_norm(each.k, torch.inf, (0, 2)) for each in prompts]).float()
    steps = torch.frexp(largest.nan_to_num(1, 1)).exponent / SIZE_STEP
    return torch.exp2(SIZE_STEP * steps.round().clamp(-5, 5))[..., None]
