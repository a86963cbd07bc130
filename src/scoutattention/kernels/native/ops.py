"""A decode step's attention on a CPU: native kernels behind checks of every tensor that they are given."""

import torch
from torch import Tensor
from typing_extensions import override

from ...errors import KernelError
from ...runtime.checks import check_exact, check_layer, check_scored
from ...runtime.memory import CPU
from ...runtime.packed import Blocks
from ...runtime.workers import Workers
from ...types import BlockList, GuardFinding, GuardRequest, Partial, SplitChoice, SplitRequest, TopBlocks
from .. import reference
from ..plain import PlainOps


class NativeOps(PlainOps):
    """The native kernels, on the threads of `workers`; what is not native is PyTorch's, as in `PlainOps`.

    Products with 2-bit keys are rounded to 8 bits. Of equal wishes the earlier block comes first.
    """

    def __init__(self, workers: Workers) -> None:
        super().__init__(CPU)
        self._workers = workers
        self._native = workers.native

    @override
    def partial(self, q: Tensor, k: Blocks, v: Blocks, blocks: BlockList, scale: float) -> Partial:
        return self._workers.partial(q, k, v, blocks, scale)

    @override
    def score_min_max(self, q: Tensor, digests: Tensor, pages: Tensor, scale: float) -> Tensor:
        q = (q * scale).to(torch.float32).contiguous()
        check_scored(q, pages)
        B, H, G, D = q.shape
        check_layer("digests", digests, torch.float32, (H, 2 * D))
        out = q.new_empty(B, H, G, pages.shape[1])
        strides = (*digests.stride()[:2], pages.stride(0))
        self._native.scores(_pointers(q, digests, pages, out), (*q.shape, pages.shape[1], digests.shape[0]), strides)
        return out

    @override
    def score_key_codes(self, q: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor, scale: float) -> Tensor:
        q = (q * scale).to(torch.float32).contiguous()
        check_scored(q, pages)
        B, H, G, D = q.shape
        N, P = pages.shape[1], codes.shape[3] if codes.dim() == 5 else 0
        check_layer("codes", codes, torch.uint8, (H, (D + 15) // 16, max(1, P), 4))
        check_layer("bounds", bounds, torch.float16, (H, 2, D))
        if bounds.shape[0] != codes.shape[0]:
            raise KernelError(
                f"codes have {codes.shape[0]} pages and bounds {bounds.shape[0]}: they must have the same"
            )
        out = q.new_empty(B, H, G, N)
        strides = (*codes.stride()[:2], *bounds.stride()[:2], pages.stride(0))
        self._native.code_scores(_pointers(q, codes, bounds, pages, out), (*q.shape, N, codes.shape[0], P), strides)
        return out

    @override
    def top_blocks(
        self, scores: Tensor, closed: Tensor, count: int, always: tuple[int, int], *, largest: bool
    ) -> TopBlocks:
        B, H, G, N = _dims("scores", scores, 4)
        check_exact("scores", scores, torch.float32, (B, H, G, N))
        check_exact("closed", closed, torch.int64, (B,))
        if G < 1:
            raise KernelError(f"scores are {list(scores.shape)}: they must be [B, H, G, N] with G at least 1")
        if not 0 <= count <= N:
            raise KernelError(f"count {count} is outside 0..{N}, the blocks that have scores")
        every, best = scores.new_empty(B, H, N), scores.new_empty(B, H, count)
        blocks = closed.new_empty(B, H, count)
        self._native.rank(_pointers(scores, closed, every, blocks, best), (B, H, G, N, *always, count), largest)
        return TopBlocks(blocks, best, every)

    @override
    def split_choice(self, what: SplitRequest) -> SplitChoice:
        blocks, wishes, closed, (slot_of, none), rows, always, counts = what
        (B, H, N), (_, _, width) = _dims("blocks", blocks, 3), _dims("slot_of", slot_of, 3)
        check_exact("blocks", blocks, torch.int64, (B, H, N))
        check_exact("wishes", wishes, torch.float32, (B, H, N))
        check_exact("closed", closed, torch.int64, (B,))
        check_exact("slot_of", slot_of, torch.int64, (B, H, width))
        for name, row, dtype in zip(("asked", "all_of_it", "threshold"), rows, _ROW_DTYPES, strict=True):
            check_exact(name, row, dtype, (B,))
        check_exact("counts", counts, torch.int64, (2, B, H))
        attended, absent = torch.empty((2, B, H, N), dtype=torch.bool)
        tensors = (blocks, wishes, closed, slot_of, *rows, attended, absent, counts)
        self._native.sift(_pointers(*tensors), (B, H, N, width, none, always))
        return SplitChoice(attended, absent)

    @override
    def update_interest(self, interest: Tensor, wishes: Tensor, rows: Tensor, kept: float) -> None:
        (B, H, width), (_, _, W) = _dims("interest", interest, 3), _dims("wishes", wishes, 3)
        check_exact("interest", interest, torch.float32, (B, H, width))
        check_exact("wishes", wishes, torch.float32, (B, H, W))
        check_exact("rows", rows, torch.bool, (B,))
        self._native.blend(_pointers(wishes, rows, interest), (B, H, W, width), kept)

    @override
    def find_late(self, what: GuardRequest) -> GuardFinding:
        (blocks, absent, wishes), (scouted, served), scout_error, rows, limit, counts = what
        B, H, N = _dims("blocks", blocks, 3)
        for name, tensor in (("blocks", blocks), ("scouted", scouted)):
            check_exact(name, tensor, torch.int64, (B, H, N))
        for name, tensor in (("absent", absent), ("served", served)):
            check_exact(name, tensor, torch.bool, (B, H, N))
        check_exact("wishes", wishes, torch.float32, (B, H, N))
        check_exact("scout_error", scout_error, torch.float32, (B, H))
        check_exact("rows", rows, torch.bool, (B,))
        check_exact("counts", counts, torch.int64, (2, B, H))
        spoilt, late = torch.empty((B, H), dtype=torch.bool), torch.empty_like(absent)
        tensors = (blocks, absent, wishes, scouted, served, scout_error, rows, spoilt, late, counts)
        self._native.late(_pointers(*tensors), (B, H, N), limit)
        return GuardFinding(spoilt, late)

    @override
    def scout_error(self, far: Partial, near: Partial, q: Tensor, q_hat: Tensor) -> Tensor:
        q, q_hat = q.float().contiguous(), q_hat.float().contiguous()
        _check_partials(q.shape, outs=(q, q_hat), rows=(far.lse, near.lse))
        most = q.new_empty(q.shape[:-2])
        self._native.doubt(_pointers(q, q_hat, far.lse, near.lse, most), (most.numel(), *q.shape[-2:]))
        return most

    @override
    def corrected(self, far: Partial, q: Tensor, q_hat: Tensor, scale: float) -> Partial:
        if far.mean_key is None:
            raise KernelError("the far partial has no mean key: it must be computed with one to be corrected")
        q, q_hat = q.float().contiguous(), q_hat.float().contiguous()
        _check_partials(q.shape, outs=(q, q_hat, far.mean_key), rows=(far.lse,))
        lse = far.lse.new_empty(far.lse.shape)
        self._native.correct(_pointers(q, q_hat, far.mean_key, far.lse, lse), (lse.numel(), q.shape[-1]), scale)
        return far._replace(lse=lse)

    @override
    def merge(self, a: Partial, b: Partial, without: Tensor | None = None) -> Partial:
        a = a if without is None else reference.left_out(a, without)
        shape = a.out.shape
        _check_partials(shape, outs=(a.out, b.out), rows=(a.lse, b.lse))
        out, lse = a.out.new_empty(shape), a.lse.new_empty(shape[:-1])
        self._native.merge(_pointers(a.out, a.lse, b.out, b.lse, out, lse), (lse.numel(), shape[-1]))
        return Partial(out, lse)


_ROW_DTYPES = (torch.bool, torch.bool, torch.float32)


def _pointers(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in tensors)


def _dims(name: str, tensor: Tensor, count: int) -> tuple[int, ...]:
    if tensor.dim() != count:
        raise KernelError(f"{name} of shape {list(tensor.shape)} has {tensor.dim()} dims: it must have {count}")
    return tuple(tensor.shape)


def _check_partials(shape: tuple[int, ...], outs: tuple[Tensor, ...], rows: tuple[Tensor, ...]) -> None:
    """Refuse what is not contiguous float32 on the CPU, of `shape` [B, H, G, D] or, as `rows`, [B, H, G]."""
    fits = len(shape) == 4
    fits = fits and all(tensor.shape == shape for tensor in outs) and all(tensor.shape == shape[:-1] for tensor in rows)
    if not (fits and all(tensor.is_cpu and tensor.is_contiguous() for tensor in outs + rows)):
        raise KernelError(
            f"tensors of shapes {[list(tensor.shape) for tensor in outs + rows]} do not fit {list(shape)}: they must "
            "be [B, H, G, D] and [B, H, G], contiguous, on the CPU"
        )
    if any(tensor.dtype != torch.float32 for tensor in outs + rows):
        raise KernelError(f"partials are {[tensor.dtype for tensor in outs + rows]}: they must be float32")
