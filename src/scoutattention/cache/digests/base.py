"""What a chooser needs of any kind of digest."""

from typing import Protocol

from torch import Tensor


class Digests(Protocol):
    """One kind of digest of all pages: written when a block closes, read to score blocks for a query."""

    def put(self, k: Tensor, places: Tensor) -> None:
        """Digest closed blocks.   k: [n, H, P, D].   places: int64 [n], layer * S + page of each."""
        ...

    def score(self, layer: int, q: Tensor, pages: Tensor) -> Tensor:
        """Estimated log-sum-exp of the scaled scores of each block's keys, up to a constant: float32 [B, H, G, N].

        q: [B, H, G, D].   pages: int32 [B, N], any page where there is no block.
        """
        ...

    def bytes_per_token(self) -> float:
        """Bytes per token over all layers and KV heads."""
        ...
