"""What attention asks of the processor that it runs on."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..runtime.packed import Blocks
from ..types import BlockList, Lateness, Listing, Partial, Sifting
from .native.choice import Late, Sifted
from .reference_pools import Pools


class Ranked(NamedTuple):
    """See `reference.rank_blocks`.   blocks: int64 [B, H, N].   wishes: float32 [B, H, NB]."""

    blocks: Tensor
    wishes: Tensor


class Copies(NamedTuple):
    """Single heads of blocks to be copied from pages to entries of another pool; int64 [M] each."""

    layer: Tensor
    page: Tensor
    entry: Tensor
    head: Tensor


class Ops(Protocol):
    """The operations of a decode step's attention, whose definitions are in `reference`.

    Tensors are on `device`, but for pools of host pages, which it can read where they are.
    """

    @property
    def device(self) -> torch.device:
        """Where tensors are, and results."""
        ...

    @property
    def deferred(self) -> bool:
        """Whether work is queued for the device, so that reading one number of it waits for all."""
        ...

    def partial(self, q: Tensor, k: Blocks, v: Blocks, blocks: BlockList, scale: float) -> Partial:
        """Attention of queries to listed blocks: see `reference.partial`."""
        ...

    def append(self, k: Tensor, v: Tensor, pools: Pools, entry: Tensor, fill: Tensor) -> None:
        """Write a token of every sequence to its open block: see `reference_pools.append`."""
        ...

    def page_list(self, what: Listing) -> BlockList:
        """Where blocks are in a pool: see `reference_pools.page_list`."""
        ...

    def hand_over(self, q: Tensor, what: Listing, to: tuple[Tensor, BlockList]) -> None:
        """Write queries and a list to the host's memory: see `reference_pools.hand_over`."""
        ...

    def write_blocks(self, blocks: tuple[Tensor, Tensor], target: tuple[Blocks, Blocks], pages: Tensor) -> None:
        """Write keys and values [n, H, P, D] to places of pools [S, H, P, D], int64 [n]."""
        ...

    def copy_blocks(self, source: tuple[Blocks, Blocks], target: tuple[Tensor, Tensor], copies: Copies) -> None:
        """Copy blocks from pools [L, S, H, P, D] of keys and values to the device's; no two to one place."""
        ...

    def put_digests(self, k: Tensor, digests: Tensor, pages: Tensor) -> None:
        """Write bounds of blocks' keys to their pages: see `reference.put_digests`."""
        ...

    def put_key_codes(self, k: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor) -> None:
        """Write blocks' keys in 2 bits to their pages: see `reference.put_key_codes`."""
        ...

    def score_digests(self, q: Tensor, digests: Tensor, pages: Tensor, scale: float) -> Tensor:
        """Upper bounds of scaled products with a block's keys: see `reference.score_digests`."""
        ...

    def score_key_codes(self, q: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor, scale: float) -> Tensor:
        """Log-sum-exp of scaled products with a block's keys in 2 bits: see `reference.score_key_codes`."""
        ...

    def rank_blocks(
        self, scores: Tensor, closed: Tensor, count: int, always: tuple[int, int], *, largest: bool
    ) -> Ranked:
        """What KV heads want, from the scores of their query heads: see `reference.rank_blocks`."""
        ...

    def sift(self, what: Sifting) -> Sifted:
        """What of a choice is attended to, and absent: see `reference.sift`."""
        ...

    def blend(self, interest: Tensor, wishes: Tensor, rows: Tensor, kept: float) -> None:
        """A running mean of wishes: see `reference.blend`."""
        ...

    def find_late(self, what: Lateness) -> Late:
        """What a scout spoilt or missed: see `reference.find_late`."""
        ...

    def doubt(self, far: Partial, near: Partial, q: Tensor, q_hat: Tensor) -> Tensor:
        """How much a wrong scout may have spoilt: see `reference.doubt`."""
        ...

    def corrected(self, far: Partial, q: Tensor, q_hat: Tensor, scale: float) -> Partial:
        """What a scout's partial weighs for the true query: see `reference.corrected`."""
        ...

    def merge(self, a: Partial, b: Partial, without: Tensor | None = None) -> Partial:
        """Attention over two sets of keys: see `reference.merge`.

        without: bool [B, H], KV heads of which a is left out, whatever it is.
        """
        ...
