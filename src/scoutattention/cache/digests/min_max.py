"""Digests of channel maxima and minima (Quest, arXiv 2406.10774, section 3.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from ...kernels.ops import Ops
from ...runtime.memory import empty
from ...shape import ModelShape
from .base import Digests
from .basis import Seen


class MinMaxDigests(Digests):
    """Channel maxima and minima of a block's keys; scores are upper bounds."""

    def __init__(self, shape: ModelShape, capacity: int, ops: Ops) -> None:
        """`capacity`: pages."""
        size = (shape.num_layers, capacity, shape.num_kv_heads, 2 * shape.head_dim)
        self._values = empty(size, torch.float32, ops.device)
        self.ops = ops
        self._scale = shape.scale

    @override
    def fit(self, row: int, first: int, prompt: Sequence[Seen]) -> None:
        pass

    @override
    def put(self, k: Tensor, places: Tensor, owners: Tensor) -> None:
        self.ops.write_min_max(k, self._values.flatten(0, 1), places)

    @override
    def score(self, layer: int, q: Tensor, rows: slice | Tensor, pages: Tensor, closed: Tensor) -> Tensor:
        return self.ops.score_min_max(q, self._values[layer], pages, closed, self._scale)

    @override
    def content(self) -> tuple[Tensor, ...]:
        return (self._values,)

    @override
    def block_bytes(self) -> int:
        return self._values[0, 0, 0].nbytes
