"""A decode step's attention on a GPU, or in Triton's interpreter: every operation is one kernel or two, none waits."""

import torch
from torch import Tensor
from typing_extensions import override

from ...errors import ConfigError, KernelError
from ...runtime.packed import Blocks, Packed
from ...types import (
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
from ..ops import Ops
from ..plain import join as plain_join
from ..plain import near_list
from ..reference import in_basis, project
from ..reference_factors import Factors, factors
from ..reference_prompt import causal
from ..requests import CallRequest, CodesRequest, InterestRequest, JoinRequest, NearRequest, PartialRequest, TakeRequest
from . import (
    calls,
    join,
    merge,
    move_blocks,
    page_lists,
    partial,
    recall,
    shares,
)
from .base import INTERPRETED
from .choices import choose, split
from .digests import main_dims, score, write
from .packed_pages import blocks as packed_blocks
from .packed_pages import partial as packed_partial
from .packed_pages import write as packed_write

PROGRAMS = 96
"""Programs that copy blocks at a time: a link to the host is full with few, and the rest of the device attends."""


class TritonOps(Ops):
    """The operations in Triton. Pools of host pages must be pinned where the device is a GPU."""

    def __init__(self, device: torch.device) -> None:
        """Raises ConfigError where the interpreter would run on a GPU, or a compiler for a CPU."""
        on_gpu = device.type != "cpu"
        if on_gpu == INTERPRETED:
            here, knob = ("a GPU", "unset it") if on_gpu else ("a CPU", "set it to 1, or kernels to 'native'")
            state = "set" if INTERPRETED else "not set"
            raise ConfigError(f"kernels='triton' on {here} and TRITON_INTERPRET, which is for CPUs, is {state}: {knob}")
        self.device = device
        self.deferred = device.type != "cpu"

    @override
    def causal(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return causal(q, k, v, scale)

    @override
    def partial(self, q: Tensor, k: Blocks, v: Blocks, blocks: BlockList, scale: float) -> Partial:
        if isinstance(k, Tensor) and isinstance(v, Tensor):
            return partial.partial(q.contiguous(), k, v, blocks, scale)
        return packed_partial.partial_packed(q.contiguous(), _packed(k, v), blocks, scale)

    @override
    def append(self, k: Tensor, v: Tensor, pools: Pools, entry: Tensor, fill: Tensor) -> None:
        move_blocks.append(k, v, pools, entry, fill)

    @override
    def page_list(self, what: PageSelection) -> BlockList:
        return page_lists.page_list(what)

    @override
    def near_list(self, what: NearRequest) -> BlockList:
        return near_list(what, page_lists.page_list)

    @override
    def stage_call(self, q: Tensor, what: PageSelection, to: tuple[Tensor, BlockList], flags: CallFlags) -> None:
        page_lists.stage_call(q.contiguous(), what, to, flags)

    @override
    def take_call(self, result: Tensor, flags: CallFlags, rows: int, timeout_s: float) -> Tensor:
        return calls.take_call(result, flags, rows, timeout_s)

    @override
    def partial_and_take(self, near: PartialRequest, call: TakeRequest) -> tuple[Partial, Tensor]:
        if isinstance(near.k, Tensor) and isinstance(near.v, Tensor):
            return partial.partial_and_take(near, call)
        return self.partial(*near), self.take_call(*call)

    @override
    def write_blocks(self, blocks: tuple[Tensor, Tensor], target: tuple[Blocks, Blocks], pages: Tensor) -> None:
        k, v = target
        if not (isinstance(k, Tensor) and isinstance(v, Tensor)):
            packed_write.write_packed_blocks(*blocks, _packed(k, v), pages.to(self.device))
            return
        count, heads = blocks[0].shape[:2]
        head = torch.arange(heads, device=self.device).repeat(count)
        page = torch.arange(count, device=self.device).repeat_interleave(heads)
        entry = pages.to(self.device).repeat_interleave(heads)
        new = (blocks[0].contiguous()[None], blocks[1].contiguous()[None])
        copies = Copies(torch.zeros_like(page), page, entry, head)
        move_blocks.copy_blocks(new, (k[None], v[None]), copies, programs=PROGRAMS)

    @override
    def copy_blocks(self, source: tuple[Blocks, Blocks], target: tuple[Tensor, Tensor], copies: Copies) -> None:
        k, v = source
        if isinstance(k, Tensor) and isinstance(v, Tensor):
            move_blocks.copy_blocks((k, v), target, copies, programs=PROGRAMS)
            return
        layer, page, entry, head = copies
        here = (layer * k.shape[1] + page).where(page >= 0, -1)
        there, pair = layer * target[0].shape[1] + entry, _packed(k, v)
        pair, flat = (pair[0].flatten(0, 1), pair[1].flatten(0, 1)), (target[0].flatten(0, 1), target[1].flatten(0, 1))
        packed_blocks.copy_packed_blocks(pair, flat, here, there, head, programs=PROGRAMS)

    @override
    def close_blocks(self, source: Pools, target: tuple[Blocks, Blocks], what: CloseRequest) -> None:
        k, v = target
        if isinstance(k, Tensor) and isinstance(v, Tensor):
            move_blocks.close_blocks(source, (k, v), what)
            return
        packed_write.close_packed_blocks(source, _packed(k, v), what)

    @override
    def write_min_max(self, k: Tensor, digests: Tensor, pages: Tensor) -> None:
        write.write_min_max(k, digests, pages)

    @override
    def write_key_codes(self, what: CodesRequest) -> None:
        for k, pages in in_basis(what):
            write.write_key_codes(k, what.codes, what.bounds, pages)

    @override
    def main_dims(self, moments: Tensor) -> Tensor:
        return main_dims.main_dims(moments)

    @override
    def factors(self, matrices: Tensor) -> Factors:
        return factors(matrices)

    @override
    def project(self, q: Tensor, basis: Tensor) -> Tensor:
        return project(q, basis)

    @override
    def score_min_max(self, q: Tensor, digests: Tensor, pages: Tensor, closed: Tensor, scale: float) -> Tensor:
        return score.score_min_max(q.contiguous(), digests, pages, closed, scale)

    @override
    def score_key_codes(
        self, q: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor, closed: Tensor, scale: float
    ) -> Tensor:
        return score.score_key_codes(q.contiguous(), codes, bounds, pages, closed, scale)

    @override
    def top_blocks(
        self, scores: Tensor, closed: Tensor, count: int, always: tuple[int, int], *, largest: bool
    ) -> TopBlocks:
        return choose.top_blocks(scores, closed, count, always, largest=largest)

    @override
    def split_choice(self, what: SplitRequest) -> SplitChoice:
        return split.split_choice(what)

    @override
    def split_and_call(
        self, what: SplitRequest, call: CallRequest, to: tuple[Tensor, BlockList], flags: CallFlags
    ) -> tuple[SplitChoice, Tensor]:
        return split.split_and_call(what, call._replace(q=call.q.contiguous()), to, flags)

    @override
    def split_and_note(self, what: SplitRequest, noting: InterestRequest) -> SplitChoice:
        return split.split_and_note(what, noting)

    @override
    def update_interest(self, interest: Tensor, blocks: Tensor, wishes: Tensor, rows: Tensor, kept: float) -> None:
        split.update_interest(interest, blocks, wishes, rows, kept)

    @override
    def find_late(self, what: GuardRequest) -> GuardFinding:
        return choose.find_late(what)

    @override
    def scout_error(self, far: Partial, near: Partial, q: Tensor, q_hat: Tensor) -> Tensor:
        return merge.scout_error(far, near, q.contiguous(), q_hat.contiguous())

    @override
    def corrected(self, far: Partial, q: Tensor, q_hat: Tensor, scale: float) -> Partial:
        return merge.corrected(far, q.contiguous(), q_hat.contiguous(), scale)

    @override
    def merge(self, a: Partial, b: Partial, without: Tensor | None = None) -> Partial:
        return merge.merge(a, b, without)

    @override
    def join(self, what: JoinRequest) -> Partial:
        if what.guard is not None and isinstance(what.guard.pool[0], Packed):
            return plain_join(self, what)
        return join.join(what)

    @override
    def count_shares(self, what: ShareCounts) -> Tensor:
        return shares.count_shares(what)

    @override
    def follow_shares(self, what: ShareRequest) -> Tensor:
        return shares.follow_shares(what)

    @override
    def recall(self, what: RecallRequest) -> None:
        recall.recall(what)

    @override
    def give_wanted(self, what: WantedRequest) -> Copies:
        return recall.give_wanted(what)


def _packed(k: Blocks, v: Blocks) -> tuple[Packed, Packed]:
    """Keys and values that are both packed.   Raises KernelError where one of them is not."""
    if isinstance(k, Tensor) or isinstance(v, Tensor):
        raise KernelError("one of k and v is packed: both must be, or neither")
    return k, v
