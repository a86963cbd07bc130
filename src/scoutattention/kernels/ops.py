"""The protocol of all operations that attention needs from a processor."""

from typing import Protocol

import torch
from torch import Tensor

from ..runtime.packed import Blocks
from ..types import (
    BlockList,
    CallFlags,
    CloseRequest,
    Copies,
    GuardFinding,
    GuardRequest,
    PageSelection,
    Partial,
    Pools,
    RecallRequest,
    ShareCounts,
    ShareRequest,
    SplitChoice,
    SplitRequest,
    TopBlocks,
    WantedRequest,
)
from .reference_factors import Factors
from .requests import (
    CallRequest,
    CodesRequest,
    InterestRequest,
    JoinRequest,
    NearRequest,
    PartialRequest,
    TakeRequest,
    TopRequest,
)


class Ops(Protocol):
    """The operations of attention: a prompt's, and those of a decode step.

    Tensors are on `device`, but for pools of host pages, which it can read where they are. Every operation raises
    KernelError where a tensor does not fit.
    """

    device: torch.device
    """Where tensors are, and results."""
    deferred: bool
    """Whether work is queued for the device, so that reading one number of it waits for all."""

    def causal(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Causal attention of the last n of a prompt's T tokens, q [n, H, G, D] and k, v [T, H, D], contiguous.

        Returns [n, H, G, D] in the dtype of k.
        """
        ...

    def partial(self, q: Tensor, k: Blocks, v: Blocks, blocks: BlockList, scale: float) -> Partial:
        """Attention of queries q [B, H, G, D] to the listed blocks of a pool's layer, k and v [S, H, P, D]."""
        ...

    def append(self, k: Tensor, v: Tensor, pools: Pools, entry: Tensor, fill: Tensor) -> None:
        """Write one token of every sequence, k and v [B, H, D], to its open block.

        entry, fill: int64 [B], the open block's entry and the position in it.
        """
        ...

    def page_list(self, what: PageSelection) -> BlockList:
        """The pages of selected blocks, with a length of 0 for those that are not wanted."""
        ...

    def near_list(self, what: NearRequest) -> BlockList:
        """The open block of each sequence, then its chosen blocks, int32 [B, H, 1 + N].

        Those that are none have length 0.
        """
        ...

    def stage_call(self, q: Tensor, what: PageSelection, to: tuple[Tensor, BlockList], flags: CallFlags) -> None:
        """Write queries [B, H, G, D] and a page list to host memory, and call the CPU, which attends from there."""
        ...

    def take_call(self, result: Tensor, flags: CallFlags, rows: int, timeout_s: float) -> Tensor:
        """Wait until the CPU has answered, `timeout_s` at most; returns its result, which the device can read.

        result: float32 [n] in host memory, of which the last `rows` are lse. It is returned itself, or a copy on the
        device. The result of a late call is that of no keys, and what is waited for after it is as late, unless it is
        there.
        """
        ...

    def partial_and_take(self, near: PartialRequest, call: TakeRequest) -> tuple[Partial, Tensor]:
        """`partial`, and beside it `take_call`: both results."""
        ...

    def write_blocks(self, blocks: tuple[Tensor, Tensor], target: tuple[Blocks, Blocks], pages: Tensor) -> None:
        """Write keys and values [n, H, P, D] to places of pools [S, H, P, D], int64 [n]."""
        ...

    def copy_blocks(self, source: tuple[Blocks, Blocks], target: tuple[Tensor, Tensor], copies: Copies) -> None:
        """Copy blocks from pools [L, S, H, P, D] of keys and values to the device's; no two to one place."""
        ...

    def close_blocks(self, source: Pools, target: tuple[Blocks, Blocks], what: CloseRequest) -> None:
        """Copy open blocks that are full from the device's pools [L, S, H, P, D] to their pages."""
        ...

    def write_min_max(self, k: Tensor, digests: Tensor, pages: Tensor) -> None:
        """Digest blocks' keys [n, H, P, D] as channel maxima and minima, into float32 [S, H, 2 D] at pages [n]."""
        ...

    def write_key_codes(self, what: CodesRequest) -> None:
        """Digest blocks' keys, or their products with a basis, as 2-bit codes and their bounds."""
        ...

    def main_dims(self, moments: Tensor) -> Tensor:
        """Directions [n, D, D] of second moments, float32 [n, D, D], the strongest first: eigenvectors."""
        ...

    def factors(self, matrices: Tensor) -> Factors:
        """Cholesky factors of positive matrices [n, m, m] in float32 or float64, and the inverses of the factors."""
        ...

    def project(self, q: Tensor, basis: Tensor) -> Tensor:
        """Products of queries q [B, H, G, D] with the rows of matrices [B, H, C, D]: float32 [B, H, G, C].

        Each matrix is contiguous.
        """
        ...

    def score_min_max(self, q: Tensor, digests: Tensor, pages: Tensor, closed: Tensor, scale: float) -> Tensor:
        """Upper bounds of the scaled products of q [B, H, G, D] with each block's keys: float32 [B, H, G, N].

        pages: int32 [B, H, N], perhaps expanded over H.   closed: int64 [B], blocks that are scored of each sequence;
        the scores of others are any numbers, and their pages not looked at.
        """
        ...

    def score_key_codes(
        self, q: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor, closed: Tensor, scale: float
    ) -> Tensor:
        """Log-sum-exp of the scaled products with each block's keys in 2 bits; see `score_min_max`."""
        ...

    def top_blocks(
        self, scores: Tensor, closed: Tensor, count: int, always: tuple[int, int], *, largest: bool
    ) -> TopBlocks:
        """What KV heads want, from the scores of their query heads; see `reference.top_blocks`."""
        ...

    def top_by_key_codes(self, what: TopRequest) -> TopBlocks:
        """`project` where there is a basis, `score_key_codes`, and `top_blocks` of the scores."""
        q, basis, codes, bounds, pages, closed, scale, how = what
        q = q if basis is None else self.project(q, basis)
        scores = self.score_key_codes(q, codes, bounds, pages, closed, scale)
        return self.top_blocks(scores, closed, how.chosen, how.always, largest=how.largest)

    def split_choice(self, what: SplitRequest) -> SplitChoice:
        """The chosen blocks, those to attend to, and which of these are absent; see `reference.split_choice`."""
        ...

    def split_and_call(
        self, what: SplitRequest, call: CallRequest, to: tuple[Tensor, BlockList], flags: CallFlags
    ) -> tuple[SplitChoice, Tensor]:
        """`split_choice`, and `stage_call` for the absent blocks; also the pages of all candidates, int32 [B, H, C]."""
        ...

    def split_and_note(self, what: SplitRequest, noting: InterestRequest) -> SplitChoice:
        """`split_choice`, and `update_interest` by the wishes for all candidates."""
        ...

    def update_interest(self, interest: Tensor, blocks: Tensor, wishes: Tensor, rows: Tensor, kept: float) -> None:
        """Take wishes for blocks [B, H, N] into the running mean `interest` [B, H, NB], in the rows of bool [B]."""
        ...

    def find_late(self, what: GuardRequest) -> GuardFinding:
        """What a scout spoilt or missed; see `reference.find_late`."""
        ...

    def scout_error(self, far: Partial, near: Partial, q: Tensor, q_hat: Tensor) -> Tensor:
        """How much a wrong scout q_hat may have spoilt each KV head, [B, H]; see `reference.scout_error`."""
        ...

    def corrected(self, far: Partial, q: Tensor, q_hat: Tensor, scale: float) -> Partial:
        """A scout's partial with the weight that it has for the true query; see `reference.corrected`."""
        ...

    def merge(self, a: Partial, b: Partial, without: Tensor | None = None) -> Partial:
        """Attention over the union of two disjoint sets of keys; see `reference.merge`.

        without: bool [B, H], KV heads of which a is left out, whatever it is.
        """
        ...

    def join(self, what: JoinRequest) -> Partial:
        """A layer's attention from its parts, out in the dtype of q; see `plain.join`."""
        ...

    def count_shares(self, what: ShareCounts) -> Tensor:
        """The sums of what a step's layers counted; see `reference_recall.count_shares`."""
        ...

    def follow_shares(self, what: ShareRequest) -> Tensor:
        """Which layers and sequences are due for recall, bool [L, B]; see `reference_recall.follow_shares`."""
        ...

    def recall(self, what: RecallRequest) -> None:
        """Give slots to blocks just closed, and to absent blocks of high interest; see `reference_recall.recall`."""
        ...

    def give_wanted(self, what: WantedRequest) -> Copies:
        """Give slots to absent chosen blocks, and say what to copy; see `reference_recall.give_wanted`."""
        ...
