"""The keys themselves as digests."""

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from ...kernels.ops import Ops
from ...kernels.reference import score_exactly
from ...runtime.packed import Blocks
from ...shape import ModelShape
from .base import Digests
from .basis import Seen


class ExactDigests(Digests):
    """The keys, read from their pages: what other digests are measured against, and slow."""

    def __init__(self, shape: ModelShape, keys: Blocks, ops: Ops) -> None:
        """`keys`: the host pool's, [L, S, H, P, D]."""
        self.ops = ops
        self._keys = keys
        self._bytes = keys.shape[3] * shape.head_dim * shape.dtype_bytes
        self._scale = shape.scale

    @override
    def fit(self, row: int, first: int, prompt: Sequence[Seen]) -> None:
        pass

    @override
    def put(self, k: Tensor, places: Tensor, owners: Tensor) -> None:
        """Nothing to do: the pages hold the keys."""

    @override
    def score(self, layer: int, q: Tensor, rows: slice | Tensor, pages: Tensor, closed: Tensor) -> Tensor:
        return score_exactly(q * self._scale, self._keys[layer], pages)

    @override
    def content(self) -> tuple[Tensor, ...]:
        return ()

    @override
    def block_bytes(self) -> int:
        return self._bytes
