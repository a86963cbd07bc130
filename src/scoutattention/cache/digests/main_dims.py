"""Digests of the few dimensions of keys in which they differ most for a sequence's queries."""

import logging
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from ...kernels.ops import Ops
from ...shape import ModelShape
from .base import Digests
from .key_codes import KeyCodeDigests

logger = logging.getLogger(__name__)

LEAST_TOKENS = 4
"""Prompt tokens below which, as a multiple of the head dim, correlations between channels are not to be trusted."""
PRIOR = 1e-3
"""Of the mean second moment of a channel, what is added to each: no direction is without queries and keys."""


class Basis(NamedTuple):
    """Main dimensions of keys, most important first.

    of_keys, of_queries: [..., D, D], what keys and queries are multiplied by. The products of the first dimensions of
    both are the best estimate of queries times keys, up to a constant for each query, and of all dimensions exact.
    """

    of_keys: Tensor
    of_queries: Tensor


class MainDimDigests(KeyCodeDigests):
    """Keys in 2 bits for each of their main dimensions. Each sequence, layer and KV head has a basis from its prompt.

    basis: float32 [L, R, H, D, D] each, to be kept with the rows.
    """

    def __init__(self, shape: ModelShape, sizes: tuple[int, int, int], ops: Ops) -> None:
        """`sizes`: positions of a block, pages, rows."""
        block_size, self._capacity, rows = sizes
        super().__init__(shape, block_size, self._capacity, ops)
        size = (shape.num_layers, rows, shape.num_kv_heads, shape.head_dim, shape.head_dim)
        self.basis = Basis(*torch.zeros((2, *size), device=ops.device))

    @override
    def fit(self, layer: int, row: int, q: Tensor, k: Tensor) -> None:
        if layer == 0 and k.shape[0] < LEAST_TOKENS * k.shape[2]:
            logger.info("a prompt of %d tokens is too short for main dimensions: channels stand in", k.shape[0])
        if not (q.isfinite().all() and k.isfinite().all()):
            logger.warning("layer %d: the prompt's keys or queries are not finite: channels stand in", layer)
            q, k = torch.zeros_like(q), torch.zeros_like(k)
        for state, fitted in zip(self.basis, fit_basis(q, k), strict=True):
            state[layer, row] = fitted

    @override
    def put(self, k: Tensor, places: Tensor, rows: Tensor) -> None:
        basis = self.basis.of_keys[places[: rows.shape[0]] // self._capacity, rows]
        super().put(k.float() @ basis, places, rows)

    @override
    def score(self, layer: int, q: Tensor, rows: slice | Tensor, pages: Tensor, closed: Tensor) -> Tensor:
        return super().score(layer, q.float() @ self.basis.of_queries[layer, rows], rows, pages, closed)


class FirstDims(Digests):
    """The first of the main dimensions of digests, read where they are: nothing is written, and nothing kept."""

    def __init__(self, whole: MainDimDigests, dims: int) -> None:
        self._whole = whole
        self._dims = dims

    @override
    def fit(self, layer: int, row: int, q: Tensor, k: Tensor) -> None:
        pass

    @override
    def put(self, k: Tensor, places: Tensor, rows: Tensor) -> None:
        pass

    @override
    def score(self, layer: int, q: Tensor, rows: slice | Tensor, pages: Tensor, closed: Tensor) -> Tensor:
        main = q.float() @ self._whole.basis.of_queries[layer, rows][..., : self._dims]
        return self._whole.score_codes(layer, main, pages, closed)

    @override
    def block_bytes(self) -> int:
        return 0


def fit_basis(q: Tensor, k: Tensor) -> Basis:
    """The basis whose first dimensions keep most of what queries q [n, H, G, D] tell of the keys k [T, H, D].

    With second moments C_q of the queries, C_k of the keys about their mean, and a factor C_q = L L^T, the products of
    queries and keys are those of L^-1 q, which has no preferred direction, and L^T k, whose main directions are kept.
    """
    D = k.shape[-1]
    queries, keys = q.float().transpose(0, 1).flatten(1, 2), k.float().transpose(0, 1)  # [H, n * G, D], [H, T, D]
    moments = []
    for x in (queries, keys - keys.mean(1, keepdim=True)):
        moment = x.mT @ x / x.shape[1]
        if k.shape[0] < LEAST_TOKENS * D:
            moment = moment.diagonal(dim1=-2, dim2=-1).diag_embed()  # then the main dimensions are channels
        mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        mean = mean.where(mean > 0, 1)
        moments.append(moment / mean + PRIOR * torch.eye(D, device=k.device))
    of_queries, of_keys = moments
    factor = torch.linalg.cholesky_ex(of_queries).L
    main = torch.linalg.eigh(factor.mT @ of_keys @ factor).eigenvectors.flip(-1)
    return Basis(factor @ main, torch.linalg.solve_triangular(factor.mT, main, upper=True))
