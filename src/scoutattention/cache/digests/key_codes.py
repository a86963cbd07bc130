"""Digests that are the keys themselves, in 2 bits: of each channel, or of each main dimension."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from ...kernels.ops import Ops
from ...kernels.reference import key_codes
from ...kernels.requests import CodesRequest, Preference, TopRequest
from ...runtime.memory import empty
from ...shape import ModelShape
from ...types import TopBlocks
from .base import Digests
from .basis import LEAST_TOKENS, Basis, Seen, fit_bases

logger = logging.getLogger(__name__)


class KeyCodeDigests(Digests):
    """Keys in 2 bits a channel, between each block's own channel minima and maxima; see `reference.key_codes`."""

    def __init__(self, shape: ModelShape, block_size: int, capacity: int, ops: Ops, dims: int | None = None) -> None:
        """`capacity`: pages.   dims: numbers that are kept of a key, or None for all."""
        entries = (shape.num_layers, capacity, shape.num_kv_heads)
        codes, bounds = key_codes(torch.zeros(block_size, dims or shape.head_dim))
        self._codes = empty((*entries, *codes.shape), codes.dtype, ops.device)
        self._bounds = empty((*entries, *bounds.shape), bounds.dtype, ops.device)
        self._views: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.ops = ops
        self._scale = shape.scale

    @override
    def fit(self, row: int, first: int, prompt: Sequence[Seen]) -> None:
        pass

    @override
    def put(self, k: Tensor, places: Tensor, owners: Tensor) -> None:
        self.put_in(None, k, places)

    def put_in(self, basis: tuple[Tensor, Tensor] | None, k: Tensor, places: Tensor) -> None:
        """`put`, of products with a basis; see `CodesRequest`."""
        codes, bounds = self._codes.flatten(0, 1), self._bounds.flatten(0, 1)
        self.ops.write_key_codes(CodesRequest(k, basis, codes, bounds, places))

    @override
    def score(self, layer: int, q: Tensor, rows: slice | Tensor, pages: Tensor, closed: Tensor) -> Tensor:
        return self.score_codes(layer, q, self.basis_of(layer, rows), pages, closed)

    @override
    def top(
        self, layer: int, q: Tensor, rows: slice | Tensor, pages: Tensor, closed: Tensor, how: Preference
    ) -> TopBlocks:
        return self.top_of_codes(layer, q, self.basis_of(layer, rows), pages, closed, how)

    def basis_of(self, layer: int, rows: slice | Tensor) -> Tensor | None:
        """What queries of the sequences in some rows are multiplied with first: float32 [B, H, dims, D], or nothing."""
        return None

    def top_of_codes(
        self, layer: int, q: Tensor, basis: Tensor | None, pages: Tensor, closed: Tensor, how: Preference
    ) -> TopBlocks:
        """The blocks wanted most by the first dimensions, as many as queries or a basis [B, H, dims, D] have."""
        codes, bounds = self._first(layer, q.shape[-1] if basis is None else basis.shape[2])
        return self.ops.top_by_key_codes(TopRequest(q, basis, codes, bounds, pages, closed, self._scale, how))

    def score_codes(self, layer: int, q: Tensor, basis: Tensor | None, pages: Tensor, closed: Tensor) -> Tensor:
        """Scores of the first dimensions, as many as queries or a basis [B, H, dims, D] have; see `score`."""
        q = q if basis is None else self.ops.project(q, basis)
        codes, bounds = self._first(layer, q.shape[-1])
        return self.ops.score_key_codes(q, codes, bounds, pages, closed, self._scale)

    def _first(self, layer: int, dims: int) -> tuple[Tensor, Tensor]:
        """Codes and bounds of a layer's first dimensions; views, made once."""
        if (layer, dims) not in self._views:
            codes, bounds = self._codes[layer, :, :, : -(-dims // 16)], self._bounds[layer, ..., :dims]
            self._views[layer, dims] = codes, bounds
        return self._views[layer, dims]

    @override
    def content(self) -> tuple[Tensor, ...]:
        return self._codes, self._bounds

    @override
    def block_bytes(self) -> int:
        return self._codes[0, 0, 0].nbytes + self._bounds[0, 0, 0].nbytes


class MainDimDigests(KeyCodeDigests):
    """Keys in 2 bits for each of their first main dimensions. Sequences, layers and KV heads have bases of their own.

    basis: float32 [L, R, H, dims, D] each, fitted to the sequence's prompt, to be kept with the rows.
    """

    def __init__(self, shape: ModelShape, sizes: tuple[int, int, int, int], ops: Ops) -> None:
        """`sizes`: positions of a block, pages, rows, and main dimensions that are kept."""
        block_size, capacity, rows, self._dims = sizes
        super().__init__(shape, block_size, capacity, ops, self._dims)
        size = (shape.num_layers, rows, shape.num_kv_heads, self._dims, shape.head_dim)
        self.basis = Basis(*torch.zeros((2, *size), device=ops.device))

    @override
    def fit(self, row: int, first: int, prompt: Sequence[Seen]) -> None:
        tokens, _, D = prompt[0].k.shape
        if first == 0 and tokens < LEAST_TOKENS * D:
            logger.info("a prompt of %d tokens is too short for main dimensions: channels stand in", tokens)
        for state, fitted in zip(self.basis, fit_bases(prompt, self.ops), strict=True):
            state[first : first + len(prompt), row] = fitted[:, :, : self._dims]

    @override
    def put(self, k: Tensor, places: Tensor, owners: Tensor) -> None:
        self.put_in((self.basis.of_keys.flatten(0, 1), owners), k, places)

    @override
    def basis_of(self, layer: int, rows: slice | Tensor) -> Tensor:
        return self.basis.of_queries[layer, rows]


class FirstDims(Digests):
    """The first of the main dimensions of digests, read where they are: nothing is written, and nothing kept."""

    def __init__(self, whole: MainDimDigests, dims: int) -> None:
        self.ops = whole.ops
        self._whole = whole
        self._dims = dims

    @override
    def fit(self, row: int, first: int, prompt: Sequence[Seen]) -> None:
        pass

    @override
    def put(self, k: Tensor, places: Tensor, owners: Tensor) -> None:
        pass

    @override
    def score(self, layer: int, q: Tensor, rows: slice | Tensor, pages: Tensor, closed: Tensor) -> Tensor:
        return self._whole.score_codes(layer, q, self._first_of(layer, rows), pages, closed)

    @override
    def top(
        self, layer: int, q: Tensor, rows: slice | Tensor, pages: Tensor, closed: Tensor, how: Preference
    ) -> TopBlocks:
        return self._whole.top_of_codes(layer, q, self._first_of(layer, rows), pages, closed, how)

    def _first_of(self, layer: int, rows: slice | Tensor) -> Tensor:
        return self._whole.basis_of(layer, rows)[:, :, : self._dims]

    @override
    def content(self) -> tuple[Tensor, ...]:
        return ()

    @override
    def block_bytes(self) -> int:
        return 0
