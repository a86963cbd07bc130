"""Digests that are the keys themselves, in 2 bits a channel."""

import torch
from torch import Tensor
from typing_extensions import override

from ...kernels.ops import Ops
from ...kernels.reference import key_codes
from ...runtime.memory import empty
from ...shape import ModelShape
from .base import Digests


class KeyCodeDigests(Digests):
    """Keys in 2 bits a channel, between each block's own channel minima and maxima; see `reference.key_codes`."""

    def __init__(self, shape: ModelShape, block_size: int, capacity: int, ops: Ops) -> None:
        """`capacity`: pages."""
        entries = (shape.num_layers, capacity, shape.num_kv_heads)
        codes, bounds = key_codes(torch.zeros(block_size, shape.head_dim))
        self._codes = empty((*entries, *codes.shape), codes.dtype, ops.device)
        self._bounds = empty((*entries, *bounds.shape), bounds.dtype, ops.device)
        self._ops = ops
        self._scale = shape.scale

    @override
    def fit(self, layer: int, row: int, q: Tensor, k: Tensor) -> None:
        pass

    @override
    def put(self, k: Tensor, places: Tensor, rows: Tensor) -> None:
        self._ops.write_key_codes(k, self._codes.flatten(0, 1), self._bounds.flatten(0, 1), places)

    @override
    def score(self, layer: int, q: Tensor, rows: slice | Tensor, pages: Tensor, closed: Tensor) -> Tensor:
        return self.score_codes(layer, q, pages, closed)

    def score_codes(self, layer: int, q: Tensor, pages: Tensor, closed: Tensor) -> Tensor:
        """Scores of the first dimensions, as many as queries q [B, H, G, dims] have; see `score`."""
        dims = q.shape[-1]
        codes, bounds = self._codes[layer, :, :, : -(-dims // 16)], self._bounds[layer, ..., :dims]
        return self._ops.score_key_codes(q, codes, bounds, pages, closed, self._scale)

    @override
    def block_bytes(self) -> int:
        return self._codes[0, 0, 0].nbytes + self._bounds[0, 0, 0].nbytes
