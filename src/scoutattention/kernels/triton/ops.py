"""A decode step's attention on a GPU, or in Triton's interpreter: every operation is one kernel or two, none waits."""

import torch
from torch import Tensor
from typing_extensions import override

from ...errors import ConfigError, KernelError
from ...runtime.packed import Blocks, Packed
from ...types import (
    BlockList,
    Copies,
    GuardFinding,
    GuardRequest,
    PageSelection,
    Partial,
    Pools,
    SplitChoice,
    SplitRequest,
    TopBlocks,
)
from ..ops import Ops
from ..plain import PlainOps
from ..reference import project
from . import choice, merge, move_blocks, page_lists, partial, score_digests, write_digests
from .base import INTERPRETED

PROGRAMS = 32
"""Programs that copy blocks at a time: a link to the host is full with few, and the rest of the device attends."""


class TritonOps(Ops):
    """The operations in Triton. Pools of host pages must be pinned where the device is a GPU.

    Packed pages are copied and written by PyTorch, and attended to by the CPU alone.
    """

    def __init__(self, device: torch.device) -> None:
        """Raises ConfigError where the interpreter would run on a GPU, or a compiler for a CPU."""
        on_gpu = device.type != "cpu"
        if on_gpu == INTERPRETED:
            here, knob = ("a GPU", "unset it") if on_gpu else ("a CPU", "set it to 1, or kernels to 'native'")
            state = "set" if INTERPRETED else "not set"
            raise ConfigError(f"kernels='triton' on {here} and TRITON_INTERPRET, which is for CPUs, is {state}: {knob}")
        self.device = device
        self.deferred = device.type != "cpu"
        self._packed = PlainOps(device)

    @override
    def partial(self, q: Tensor, k: Blocks, v: Blocks, blocks: BlockList, scale: float) -> Partial:
        if isinstance(k, Packed) or isinstance(v, Packed):
            raise KernelError("blocks are packed, and the device's kernels read plain ones: leave kv_dtype at 'auto'")
        return partial.partial(q.contiguous(), k, v, blocks, scale)

    @override
    def append(self, k: Tensor, v: Tensor, pools: Pools, entry: Tensor, fill: Tensor) -> None:
        move_blocks.append(k, v, pools, entry, fill)

    @override
    def page_list(self, what: PageSelection) -> BlockList:
        return page_lists.page_list(what)

    @override
    def stage_call(self, q: Tensor, what: PageSelection, to: tuple[Tensor, BlockList]) -> None:
        page_lists.stage_call(q.contiguous(), what, to)

    @override
    def write_blocks(self, blocks: tuple[Tensor, Tensor], target: tuple[Blocks, Blocks], pages: Tensor) -> None:
        k, v = target
        if isinstance(k, Packed) or isinstance(v, Packed):
            self._packed.write_blocks(blocks, target, pages)
            return
        count, heads = blocks[0].shape[:2]
        head = torch.arange(heads, device=self.device).repeat(count)
        page = torch.arange(count, device=self.device).repeat_interleave(heads)
        entry = pages.to(self.device).repeat_interleave(heads)
        new = (blocks[0].contiguous(), blocks[1].contiguous())
        move_blocks.copy_blocks(new, (k, v), page, entry, head, programs=PROGRAMS)

    @override
    def copy_blocks(self, source: tuple[Blocks, Blocks], target: tuple[Tensor, Tensor], copies: Copies) -> None:
        k, v = source
        if isinstance(k, Packed) or isinstance(v, Packed):
            self._packed.copy_blocks(source, target, copies)
            return
        layer, page, entry, head = copies
        here, there = layer * k.shape[1] + page, layer * target[0].shape[1] + entry
        flat = (target[0].flatten(0, 1), target[1].flatten(0, 1))
        move_blocks.copy_blocks((k.flatten(0, 1), v.flatten(0, 1)), flat, here, there, head, programs=PROGRAMS)

    @override
    def write_min_max(self, k: Tensor, digests: Tensor, pages: Tensor) -> None:
        write_digests.write_min_max(k, digests, pages)

    @override
    def write_key_codes(self, k: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor) -> None:
        write_digests.write_key_codes(k, codes, bounds, pages)

    @override
    def project(self, q: Tensor, basis: Tensor) -> Tensor:
        return project(q, basis)

    @override
    def score_min_max(self, q: Tensor, digests: Tensor, pages: Tensor, closed: Tensor, scale: float) -> Tensor:
        return score_digests.score_min_max(q.contiguous(), digests, pages, closed, scale)

    @override
    def score_key_codes(
        self, q: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor, closed: Tensor, scale: float
    ) -> Tensor:
        return score_digests.score_key_codes(q.contiguous(), codes, bounds, pages, closed, scale)

    @override
    def top_blocks(
        self, scores: Tensor, closed: Tensor, count: int, always: tuple[int, int], *, largest: bool
    ) -> TopBlocks:
        return choice.top_blocks(scores, closed, count, always, largest=largest)

    @override
    def split_choice(self, what: SplitRequest) -> SplitChoice:
        return choice.split_choice(what)

    @override
    def update_interest(self, interest: Tensor, blocks: Tensor, wishes: Tensor, rows: Tensor, kept: float) -> None:
        choice.update_interest(interest, blocks, wishes, rows, kept)

    @override
    def find_late(self, what: GuardRequest) -> GuardFinding:
        return choice.find_late(what)

    @override
    def scout_error(self, far: Partial, near: Partial, q: Tensor, q_hat: Tensor) -> Tensor:
        return merge.scout_error(far, near, q.contiguous(), q_hat.contiguous())

    @override
    def corrected(self, far: Partial, q: Tensor, q_hat: Tensor, scale: float) -> Partial:
        return merge.corrected(far, q.contiguous(), q_hat.contiguous(), scale)

    @override
    def merge(self, a: Partial, b: Partial, without: Tensor | None = None) -> Partial:
        return merge.merge(a, b, without)
