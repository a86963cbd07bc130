"""Digest scores on an NVIDIA GPU: keys in 2 bits a channel, of listed pages."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..triton.base import ceil_div, check, processors
from .base import QUERY_TYPES, Argument, CudaLaunch

BATCH = 8  # pages that a warp scores at a time
WARPS = 4  # of a program that projects
HEADS = 8  # query heads of a program
LONGEST = 16  # batches of a warp
MOST_HEADS = 16  # query heads of a KV head that are projected
PARTS = 16  # programs that project the queries of a KV head
MOST_CHANNELS = 256  # of keys: of more, shared memory does not hold what is copied ahead


def has_kernel(D: int, P: int) -> bool:
    """Whether there is a kernel that scores D channels, and pages of P positions."""
    return D % 16 == 0 and D <= MOST_CHANNELS and P in (16, 32)


class Reading(NamedTuple):
    """How a program reads.

    warps: of the program.   group: pages that a warp copies at a time.   stages: groups that it holds in shared memory,
    the one that it scores and those that it copies.   resident: programs that a processor has registers for.
    """

    warps: int
    group: int
    stages: int
    resident: int


FEW = Reading(2, 1, 3, 8)
MANY = {128: Reading(4, 2, 3, 4), MOST_CHANNELS: Reading(4, 1, 3, 2)}
"""Where programs are few; and, by the most channels of keys, where they are many.

Among the best of sweeps on an H200, with 64 and 128 channels. With 64, six programs for a processor leave 80 registers
for a thread, and take longer.
"""
COUNTED = 4  # warps of the programs that are counted, of which there are few or many


def reading(D: int, count: int, available: int) -> Reading:
    """How programs read.   count: programs that there would be, if each had COUNTED warps, and a warp one batch.

    available: processors of the device.
    """
    few = count <= FEW.resident * FEW.warps // COUNTED * available
    return FEW if few else next(how for most, how in MANY.items() if most >= D)


def score_launch(
    q: Tensor, digests: tuple[Tensor, Tensor], pages: Tensor, closed: Tensor, scores: Tensor, scale: float
) -> CudaLaunch:
    """The launch of `score_key_codes`, which fills `scores`.   digests: codes and bounds."""
    B, H, G, D = q.shape
    codes, bounds = digests
    N, P = pages.shape[2], codes.shape[3]
    strides = (*codes.stride()[:2], *(2 * stride for stride in bounds.stride()[:3]), *pages.stride()[:2])  # in bytes
    rows, batches = B * H * ceil_div(G, HEADS), ceil_div(N, BATCH)
    available = processors(q.device) if q.is_cuda else 1
    how = reading(D, rows * ceil_div(batches, COUNTED), available)
    grid = (B * H, programs(rows, ceil_div(batches, how.warps), available * how.resident), ceil_div(G, HEADS))
    defines = {"D": D, "P": P, "G": G, "QUERY": QUERY_TYPES[q.dtype], "WARPS": how.warps}
    defines |= {"GROUP": how.group, "STAGES": how.stages, "RESIDENT": how.resident}
    arguments: tuple[Argument, ...] = (q, codes, bounds, pages, closed, scores, scale, *strides, H, N)
    return CudaLaunch("score", "score_pages", grid, 32 * how.warps, arguments, defines)


def programs(rows: int, parts: int, places: int) -> int:
    """Programs that share the parts of a row, so that the last of `rows` rows is done as soon as can be.

    places: programs that the device holds at a time. A program takes as long to begin as for a part.
    """

    def time(count: int) -> int:
        return ceil_div(rows * count, places) * (1 + ceil_div(parts, count))

    return min((ceil_div(parts, each) for each in range(1, LONGEST + 1)), key=time) if parts else 0


def score_key_codes(
    q: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor, closed: Tensor, scale: float = 1.0
) -> Tensor:
    """Log-sum-exp of scale * q . k over each block's keys: float32 [B, H, G, N]; twin of `reference.score_key_codes`.

    The products of the query with a page's steps are rounded to float16.

    q: [B, H, G, D], contiguous.   codes, bounds: one layer, uint8 [S, H, W, P, 4] and float16 [S, H, 2, D], where a
    page's words, and each of its bounds, lie together.   pages: int32 [B, H, N], of which the first `closed`, int64
    [B], are scored.   Raises KernelError where a tensor does not fit. Pages are not looked at.
    """
    B, H, G, D = q.shape
    check("q", q, (None, None, None, None), *QUERY_TYPES, rows=4)
    check("codes", codes, (None, H, ceil_div(D, 16), None, 4), torch.uint8, rows=3)
    check("bounds", bounds, (codes.shape[0], H, 2, D), torch.float16)
    check("pages", pages, (B, H, None), torch.int32)
    check("closed", closed, (B,), torch.int64)
    scores = q.new_empty((B, H, G, pages.shape[2]), dtype=torch.float32)
    score_launch(q, (codes, bounds), pages, closed, scores, scale).run()
    return scores


def project_launch(q: Tensor, basis: Tensor, out: Tensor) -> CudaLaunch:
    """The launch of `project`, which fills `out`."""
    B, H, G, D = q.shape
    C = basis.shape[2]
    defines = {"D": D, "G": G, "QUERY": QUERY_TYPES[q.dtype], "WARPS": WARPS}
    arguments: tuple[Argument, ...] = (q, basis, out, *basis.stride()[:2], H, C)
    return CudaLaunch("project", "project", (B * H, min(PARTS, ceil_div(C, WARPS))), 32 * WARPS, arguments, defines)


def project(q: Tensor, basis: Tensor) -> Tensor:
    """Products of queries q [B, H, G, D] with the rows of matrices: float32 [B, H, G, C]; twin of `reference.project`.

    q: contiguous, of MOST_HEADS heads at most; D is a multiple of 4.   basis: float32 [B, H, C, D], each matrix
    contiguous.   Raises KernelError where a tensor does not fit.
    """
    B, H, G, D = q.shape
    check("q", q, (None, None, None, None), *QUERY_TYPES, rows=4)
    check("basis", basis, (B, H, None, D), torch.float32, rows=2)
    out = q.new_empty((B, H, G, basis.shape[2]), dtype=torch.float32)
    project_launch(q, basis, out).run()
    return out
