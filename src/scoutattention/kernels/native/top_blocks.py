"""Which blocks a KV head's queries want, native: one pass over the scores of the digests."""

import torch
from torch import Tensor

from ...errors import KernelError
from ...runtime.workers import Workers


def rank_blocks(
    workers: Workers, scores: Tensor, closed: Tensor, count: int, always: tuple[int, int], *, largest: bool
) -> tuple[Tensor, Tensor]:
    """See `reference.rank_blocks`; of equal blocks the first comes first.

    Raises KernelError where a tensor does not fit, or `closed` or `count` is above the blocks that have scores.
    """
    if scores.dtype != torch.float32 or scores.dim() != 4 or not scores.is_cpu or not scores.is_contiguous():
        raise KernelError(
            f"scores are {scores.dtype} {list(scores.shape)} with strides {scores.stride()} on {scores.device}: they "
            "must be float32 [B, H, G, N], contiguous, on the CPU"
        )
    B, H, G, N = scores.shape
    if closed.dtype != torch.int64 or closed.shape != (B,) or not closed.is_cpu or not closed.is_contiguous() or G < 1:
        raise KernelError(f"closed is {closed.dtype} {list(closed.shape)}: it must be int64 [{B}], and G at least 1")
    if not 0 <= count <= N:
        raise KernelError(f"count {count} is outside 0..{N}, the blocks that have scores")
    wishes = scores.new_empty(B, H, N)
    blocks = closed.new_empty(B, H, count)
    pointers = (scores.data_ptr(), closed.data_ptr(), wishes.data_ptr(), blocks.data_ptr())
    workers.native.rank(pointers, (B, H, G, N, *always, count), largest)
    return blocks, wishes
