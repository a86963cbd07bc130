"""What operations take that need many tensors."""

from typing import NamedTuple

from torch import Tensor

from ..runtime.packed import Blocks
from ..types import BlockList, CallFlags, Partial


class PartialRequest(NamedTuple):
    """What `Ops.partial` takes."""

    q: Tensor
    k: Blocks
    v: Blocks
    blocks: BlockList
    scale: float


class TakeRequest(NamedTuple):
    """What `Ops.take_call` takes."""

    result: Tensor
    flags: CallFlags
    rows: int
    timeout_s: float


class NearRequest(NamedTuple):
    """What is attended to of sequences whose pages are all where attention is.

    table: int32 [B, NB], each block's page.   candidates: int64 [B, H, C], blocks.   picks: int64 [B, H, N], places of
    the chosen ones among them, or None, where they are the first N.   chosen: N.   closed: int64 [B], blocks that each
    sequence has.   opened: int64 [B] each, the page of the open block and the place of its last token.
    size: tokens of a block.
    """

    table: Tensor
    candidates: Tensor
    picks: Tensor | None
    chosen: int
    closed: Tensor
    opened: tuple[Tensor, Tensor]
    size: int


class Preference(NamedTuple):
    """How many blocks are chosen, how many first and last ones before all others, and by which pooling.

    largest: see `reference.top_blocks`.
    """

    chosen: int
    always: tuple[int, int]
    largest: bool


class CodesRequest(NamedTuple):
    """Keys of blocks, and the digests that are made of them in 2 bits.

    k: [n, H, P, D].
    basis: None, or matrices float32 [R, H, C, D] and each block's row of them, int64 [n], or [1] for all blocks.
    With a basis, the products of the matrices with the keys are kept instead of the keys.
    codes, bounds: uint8 [S, H, W, P, 4] and float16 [S, H, 2, C], see `reference.key_codes`; C is D without a basis.
    pages: int64 [n], where each block's digest goes, no two alike.
    """

    k: Tensor
    basis: tuple[Tensor, Tensor] | None
    codes: Tensor
    bounds: Tensor
    pages: Tensor


class TopRequest(NamedTuple):
    """Queries, and the 2-bit keys of the pages that they choose from.

    q: [B, H, G, D].   basis: float32 [B, H, C, D], whose products with q are scored instead of q, or None.
    codes, bounds, pages, closed, scale: see `Ops.score_key_codes`.
    """

    q: Tensor
    basis: Tensor | None
    codes: Tensor
    bounds: Tensor
    pages: Tensor
    closed: Tensor
    scale: float
    how: Preference


class CallRequest(NamedTuple):
    """A call for the absent blocks of a choice.

    q: [B, H, G, D], that attends to them.   table: int32 [B, NB], each block's page.   size: tokens of a block.
    """

    q: Tensor
    table: Tensor
    size: int


class InterestRequest(NamedTuple):
    """Wishes for all candidates of a choice, to be taken into the interest in blocks.

    interest: float32 [B, H, NB].   wishes: float32 [B, H, C].   rows: bool [B], sequences whose interest changes.
    kept: the part of the interest that stays.
    """

    interest: Tensor
    wishes: Tensor
    rows: Tensor
    kept: float


class LayerGuard(NamedTuple):
    """What the guard of a layer goes by, and what it attends to late.

    wanted, scouted, rows, limit, counts: see `GuardRequest`.   table: int32 [B, NB], each block's page.
    pool: keys and values of the layer's pages.
    """

    wanted: tuple[Tensor, Tensor, Tensor]
    scouted: tuple[Tensor, Tensor]
    rows: Tensor
    limit: float
    counts: Tensor
    table: Tensor
    pool: tuple[Blocks, Blocks]


class JoinRequest(NamedTuple):
    """A layer's parts, to be put together for its true query.

    q: [B, H, G, D].   near, far: float32, of disjoint keys.   scout: [B, H, G, D], the query of `far`, or None where
    that was q. Where `far` has mean keys, its weight is corrected to first order for q.   scale: of the scores.
    guard: what is doubted, and attended to late, or None for nothing.
    """

    q: Tensor
    near: Partial
    far: Partial
    scout: Tensor | None
    scale: float
    guard: LayerGuard | None
