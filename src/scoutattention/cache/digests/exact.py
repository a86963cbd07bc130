"""The keys themselves as digests."""

from torch import Tensor
from typing_extensions import override

from ...kernels.reference import score_exactly
from ...runtime.packed import Blocks
from ...shape import ModelShape
from .base import Digests


class ExactDigests(Digests):
    """The keys, read from their pages: what other digests are measured against, and slow."""

    def __init__(self, shape: ModelShape, keys: Blocks) -> None:
        """`keys`: the host pool's, [L, S, H, P, D]."""
        self._keys = keys
        self._bytes = shape.kv_bytes_per_token / 2
        self._scale = shape.scale

    @override
    def put(self, k: Tensor, places: Tensor) -> None:
        """Nothing to do: the pages hold the keys."""

    @override
    def score(self, layer: int, q: Tensor, pages: Tensor) -> Tensor:
        return score_exactly(q * self._scale, self._keys[layer], pages)

    @override
    def bytes_per_token(self) -> float:
        return self._bytes
