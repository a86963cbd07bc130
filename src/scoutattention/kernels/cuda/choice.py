"""Which blocks KV heads want, on an NVIDIA GPU: wishes from scores and the best of them, in one launch."""

import torch
from torch import Tensor

from ...errors import KernelError
from ...types import TopBlocks
from ..triton.base import ceil_div, check, padded
from .base import CudaLaunch

LEAST, THREADS = 128, 512  # of a program: one for each block, within these limits
LONG = 4096  # blocks from which on a program has twice the threads
MOST_EACH = 16  # blocks of a thread
MOST_TAKEN = 2048


def has_kernel(N: int, count: int) -> bool:
    """Whether there is a kernel for the best `count` of N blocks."""
    return N <= 2 * THREADS * MOST_EACH and count <= MOST_TAKEN


def top_launch(
    scores: Tensor, closed: Tensor, result: TopBlocks, always: tuple[int, int], *, largest: bool
) -> CudaLaunch:
    """The launch of `top_blocks`, which fills `result`."""
    B, H, G, N = scores.shape
    count, threads = result.blocks.shape[2], max(LEAST, min(THREADS, padded(N))) if N < LONG else 2 * THREADS
    each = padded(ceil_div(N, threads))
    arguments = (scores, closed, *result, count, *always, int(largest), H, N)
    defines = {"G": G, "THREADS": threads, "EACH": each}
    shared = 4 * threads if each == 1 else 12 * count
    return CudaLaunch("top", "top_blocks", (B * H,), threads, arguments, defines, shared)


def top_blocks(scores: Tensor, closed: Tensor, count: int, always: tuple[int, int], *, largest: bool) -> TopBlocks:
    """The blocks that KV heads want most; the twin of `reference.top_blocks`. Of equals the first comes first.

    scores: float32 [B, H, G, N], contiguous.   closed: int64 [B].   Raises KernelError where a tensor does not fit.
    """
    check("scores", scores, (None, None, None, None), torch.float32, rows=4)
    B, H, _, N = scores.shape
    check("closed", closed, (B,), torch.int64)
    if count > N:
        raise KernelError(f"count is {count}: scores are of {N} blocks, and it must be at most that")
    blocks = torch.empty((B, H, count), dtype=torch.int64, device=scores.device)
    result = TopBlocks(blocks, scores.new_empty((B, H, count)), scores.new_empty((B, H, N)))
    top_launch(scores, closed, result, always, largest=largest).run()
    return result
