"""Digest scores on an NVIDIA GPU: keys in 2 bits a channel, of listed pages."""

import torch
from torch import Tensor

from ..triton.base import ceil_div, check, processors
from .base import QUERY_TYPES, CudaLaunch

BATCH = 8  # pages that a warp scores at a time
WARPS = 4
HEADS = 8  # query heads of a program
AHEAD = 2  # pages that a warp reads ahead, where a key has 32 channels or fewer; else 1
WAVES = 5  # programs that a processor has at a time
LONGEST = 8  # batches of a warp


def has_kernel(D: int, P: int) -> bool:
    """Whether there is a kernel for D channels, and pages of P positions."""
    return D % 16 == 0 and P in (16, 32)


def score_launch(q: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor, scores: Tensor, scale: float) -> CudaLaunch:
    """The launch of `score_key_codes`, which fills `scores`."""
    B, H, G, D = q.shape
    N, P = pages.shape[1], codes.shape[3]
    strides = (codes.stride(0), 2 * bounds.stride(0), 0, pages.stride(0))
    defines = {"D": D, "P": P, "G": G, "QUERY": QUERY_TYPES[q.dtype], "TURNED": 0}
    defines |= {"WARPS": WARPS, "AHEAD": AHEAD if D <= 32 else 1}
    parts = ceil_div(N, BATCH * WARPS)
    programs = B * H * ceil_div(G, HEADS) * parts
    each = max(1, min(LONGEST, programs // (WAVES * processors(q.device)))) if q.is_cuda else 1
    grid = (B * H, ceil_div(parts, each), ceil_div(G, HEADS))
    arguments = (q, None, codes, bounds, pages, None, None, scores, scale, *strides, H, N)
    return CudaLaunch("score", "score_pages", grid, 32 * WARPS, arguments, defines)


def score_key_codes(q: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor, scale: float = 1.0) -> Tensor:
    """Log-sum-exp of scale * q . k over each block's keys: float32 [B, H, G, N]; twin of `reference.score_key_codes`.

    The products of the query with a page's steps are rounded to float16.

    q: [B, H, G, D], contiguous.   codes, bounds: one layer, uint8 [S, H, W, P, 4] and float16 [S, H, 2, D].
    pages: int32 [B, N].   Raises KernelError where a tensor does not fit. Pages are not looked at.
    """
    B, H, G, D = q.shape
    check("q", q, (None, None, None, None), *QUERY_TYPES, rows=4)
    check("codes", codes, (None, H, ceil_div(D, 16), None, 4), torch.uint8, rows=4)
    check("bounds", bounds, (codes.shape[0], H, 2, D), torch.float16, rows=3)
    check("pages", pages, (B, None), torch.int32)
    scores = q.new_empty((B, H, G, pages.shape[1]), dtype=torch.float32)
    score_launch(q, codes, bounds, pages, scores, scale).run()
    return scores
