"""A decode step's attention on a GPU, or in Triton's interpreter: every operation is one kernel or two, none waits."""

import torch
from torch import Tensor

from ...errors import ConfigError, KernelError
from ...runtime.packed import Blocks, Packed
from ...types import BlockList, Lateness, Listing, Partial, Sifting
from ..native.choice import Late, Sifted
from ..ops import Copies, Ranked
from ..plain import copy_blocks, write_blocks
from ..reference_pools import Pools
from . import choice as triton_rank
from . import merge as triton_merge
from . import move_blocks as triton_move
from . import page_lists as triton_list
from . import partial as triton_partial
from . import score_digests as triton_digest
from . import write_digests as triton_close
from .base import INTERPRETED

PROGRAMS = 32
"""Programs that copy blocks at a time: a link to the host is full with few, and the rest of the device attends."""


class TritonOps:
    """See `Ops`; pools of host pages must be pinned where the device is a GPU; packed ones are the CPU's to read."""

    def __init__(self, device: torch.device) -> None:
        """Raises ConfigError where the interpreter would run on a GPU, or a compiler for a CPU."""
        on_gpu = device.type != "cpu"
        if on_gpu == INTERPRETED:
            here, knob = ("a GPU", "unset it") if on_gpu else ("a CPU", "set it to 1, or kernels to 'native'")
            state = "set" if INTERPRETED else "not set"
            raise ConfigError(f"kernels='triton' on {here} and TRITON_INTERPRET, which is for CPUs, is {state}: {knob}")
        self.device = device
        self.deferred = device.type != "cpu"

    def partial(self, q: Tensor, k: Blocks, v: Blocks, blocks: BlockList, scale: float) -> Partial:
        """See `Ops.partial`."""
        if isinstance(k, Packed) or isinstance(v, Packed):
            raise KernelError("blocks are packed, and the device's kernels read plain ones: leave kv_dtype at 'auto'")
        return triton_partial.partial(q.contiguous(), k, v, blocks, scale)

    def append(self, k: Tensor, v: Tensor, pools: Pools, entry: Tensor, fill: Tensor) -> None:
        """See `Ops.append`."""
        triton_move.append(k, v, pools, entry, fill)

    def page_list(self, what: Listing) -> BlockList:
        """See `Ops.page_list`."""
        return triton_list.page_list(what)

    def hand_over(self, q: Tensor, what: Listing, to: tuple[Tensor, BlockList]) -> None:
        """See `Ops.hand_over`."""
        triton_list.hand_over(q.contiguous(), what, to)

    def write_blocks(self, blocks: tuple[Tensor, Tensor], target: tuple[Blocks, Blocks], pages: Tensor) -> None:
        """See `Ops.write_blocks`; to pages in pinned memory the device writes itself."""
        k, v = target
        if isinstance(k, Packed) or isinstance(v, Packed):
            write_blocks(blocks, target, pages)
            return
        count, heads = blocks[0].shape[:2]
        head = torch.arange(heads, device=self.device).repeat(count)
        page = torch.arange(count, device=self.device).repeat_interleave(heads)
        entry = pages.to(self.device).repeat_interleave(heads)
        new = (blocks[0].contiguous(), blocks[1].contiguous())
        triton_move.copy_blocks(new, (k, v), page, entry, head, programs=PROGRAMS)

    def copy_blocks(self, source: tuple[Blocks, Blocks], target: tuple[Tensor, Tensor], copies: Copies) -> None:
        """See `Ops.copy_blocks`."""
        k, v = source
        if isinstance(k, Packed) or isinstance(v, Packed):
            copy_blocks(source, target, copies)
            return
        layer, page, entry, head = copies
        here, there = layer * k.shape[1] + page, layer * target[0].shape[1] + entry
        flat = (target[0].flatten(0, 1), target[1].flatten(0, 1))
        triton_move.copy_blocks((k.flatten(0, 1), v.flatten(0, 1)), flat, here, there, head, programs=PROGRAMS)

    def put_digests(self, k: Tensor, digests: Tensor, pages: Tensor) -> None:
        """See `Ops.put_digests`."""
        triton_close.put_digests(k, digests, pages)

    def put_key_codes(self, k: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor) -> None:
        """See `Ops.put_key_codes`."""
        triton_close.put_key_codes(k, codes, bounds, pages)

    def score_digests(self, q: Tensor, digests: Tensor, pages: Tensor, scale: float) -> Tensor:
        """See `Ops.score_digests`."""
        return triton_digest.score_digests(q.contiguous(), digests, pages, scale)

    def score_key_codes(self, q: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor, scale: float) -> Tensor:
        """See `Ops.score_key_codes`."""
        return triton_digest.score_key_codes(q.contiguous(), codes, bounds, pages, scale)

    def rank_blocks(
        self, scores: Tensor, closed: Tensor, count: int, always: tuple[int, int], *, largest: bool
    ) -> Ranked:
        """See `Ops.rank_blocks`."""
        return Ranked(*triton_rank.rank_blocks(scores, closed, count, always, largest=largest))

    def sift(self, what: Sifting) -> Sifted:
        """See `Ops.sift`."""
        return triton_rank.sift(what)

    def blend(self, interest: Tensor, wishes: Tensor, rows: Tensor, kept: float) -> None:
        """See `Ops.blend`."""
        triton_rank.blend(interest, wishes, rows, kept)

    def find_late(self, what: Lateness) -> Late:
        """See `Ops.find_late`."""
        return triton_rank.find_late(what)

    def doubt(self, far: Partial, near: Partial, q: Tensor, q_hat: Tensor) -> Tensor:
        """See `Ops.doubt`."""
        return triton_merge.doubt(far, near, q.contiguous(), q_hat.contiguous())

    def corrected(self, far: Partial, q: Tensor, q_hat: Tensor, scale: float) -> Partial:
        """See `Ops.corrected`."""
        return triton_merge.corrected(far, q.contiguous(), q_hat.contiguous(), scale)

    def merge(self, a: Partial, b: Partial, without: Tensor | None = None) -> Partial:
        """See `Ops.merge`."""
        return triton_merge.merge(a, b, without)
