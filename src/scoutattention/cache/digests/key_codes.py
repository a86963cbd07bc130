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
        self._block_size = block_size
        self._ops = ops
        self._scale = shape.scale

    @override
    def put(self, k: Tensor, places: Tensor) -> None:
        self._ops.write_key_codes(k, self._codes.flatten(0, 1), self._bounds.flatten(0, 1), places)

    @override
    def score(self, layer: int, q: Tensor, pages: Tensor) -> Tensor:
        return self._ops.score_key_codes(q, self._codes[layer], self._bounds[layer], pages, self._scale)

    @override
    def bytes_per_token(self) -> float:
        return (self._codes[:, 0].nbytes + self._bounds[:, 0].nbytes) / self._block_size
