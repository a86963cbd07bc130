"""The protocol of all kinds of digests."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ...kernels.ops import Ops
from ...kernels.requests import Preference
from ...types import TopBlocks
from .basis import Seen


class Digests(Protocol):
    """One kind of digest of all pages: written when a block closes, read to score blocks for a query."""

    ops: Ops

    def fit(self, row: int, first: int, prompt: Sequence[Seen]) -> None:
        """See a prompt in layers from `first` on, before they are digested."""
        ...

    def put(self, k: Tensor, places: Tensor, owners: Tensor) -> None:
        """Digest closed blocks.   k: [n, H, P, D].   places: int64 [n], layer * S + page of each.

        owners: int64 [n], layer * R + row of each block's sequence; or [1], where all are of one sequence and layer.
        """
        ...

    def score(self, layer: int, q: Tensor, rows: slice | Tensor, pages: Tensor, closed: Tensor) -> Tensor:
        """Estimated log-sum-exp of the scaled scores of each block's keys, up to a constant: float32 [B, H, G, N].

        q: [B, H, G, D].   rows: of the sequences, see `Batch`.   pages, closed: see `Ops.score_min_max`.
        """
        ...

    def top(
        self, layer: int, q: Tensor, rows: slice | Tensor, pages: Tensor, closed: Tensor, how: Preference
    ) -> TopBlocks:
        """The blocks that are wanted most by these scores; the other arguments are those of `score`."""
        scores = self.score(layer, q, rows, pages, closed)
        return self.ops.top_blocks(scores, closed, how.chosen, how.always, largest=how.largest)

    def content(self) -> tuple[Tensor, ...]:
        """All that is kept of blocks: [L, S, ...] each."""
        ...

    def block_bytes(self) -> int:
        """Bytes of one block's digest in one layer and KV head."""
        ...
