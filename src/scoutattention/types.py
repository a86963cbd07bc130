"""The axes legend and the values that layers, kernels and caches exchange.

Axes, in every comment and docstring of this project:

    B  sequences of a step            T  tokens of a prompt
    L  layers                         H  KV heads
    G  query heads per KV head        Q  query heads, Q = H * G, query head h * G + g belongs to KV head h
    D  head dim                       E  hidden size
    N  blocks of a list               S  slots or pages of a pool
    P  positions of a block, at most block_size
"""

from typing import NamedTuple

from torch import Tensor


class Partial(NamedTuple):
    """Attention over some keys, mergeable with attention over other keys.

    out: float32 [B, H, G, D], normalised over its own keys; zero where there are none.
    lse: float32 [B, H, G], natural logarithm of the sum of exp(score); -inf where there are no keys.
    mean_key: float32 [B, H, G, D] or None, the keys' mean under their own attention weights; zero where none.
    """

    out: Tensor
    lse: Tensor
    mean_key: Tensor | None = None


class BlockList(NamedTuple):
    """Which blocks of a pool to attend to, and how many tokens of each.

    index: int32 [B, H, N], pages or slots of a pool; any value where the length is 0. May be an expanded view.
    length: int32 [B, H, N], tokens to attend to in each; 0 skips the block.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which a list of blocks has no use for
    length: Tensor


class Listing(NamedTuple):
    """Blocks of sequences, to be listed where they are in a pool.

    table: int32 [B, NB], each block's page.   blocks: int64 [B, H, N].   wanted: bool [B, H, N], others are skipped.
    size: tokens of a block.
    """

    table: Tensor
    blocks: Tensor
    wanted: Tensor
    size: int


class Sifting(NamedTuple):
    """What a choice is sifted by.

    blocks, wishes, closed: int64 [B, H, N], float32 [B, H, NB] and int64 [B]; see `reference.rank_blocks`.
    slots: the slot of each block, int64 [B, H, NB or more], and what is none.
    rows: bool [B], which sequences want anything; bool [B], which of them want all of it; float32 [B], what an absent
        block must be wished for in the others, but for the `always` first.
    """

    blocks: Tensor
    wishes: Tensor
    closed: Tensor
    slots: tuple[Tensor, int]
    rows: tuple[Tensor, Tensor, Tensor]
    always: int


class Lateness(NamedTuple):
    """What decides whether a scout was good enough.

    wanted: blocks int64 [B, H, N] that the true query wants, which of them are absent, bool [B, H, N], and its wishes
        [B, H, NB].   ahead: the scout's blocks, and which of them were attended to.
    doubt: see `reference.doubt`, float32 [B, H].   rows: bool [B], the sequences that have a scout.
    limit: of the doubt, and of the wishes for what was missed.
    """

    wanted: tuple[Tensor, Tensor, Tensor]
    ahead: tuple[Tensor, Tensor]
    doubt: Tensor
    rows: Tensor
    limit: float


class Rope(NamedTuple):
    """Rotary tables of the positions of a step: cos and sin, float32 [T, D] each."""

    cos: Tensor
    sin: Tensor
