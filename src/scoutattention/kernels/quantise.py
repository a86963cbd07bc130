"""Weights in few bits: numbers rounded to stored blocks, in plain PyTorch."""

import torch
from torch import Tensor

from ..errors import KernelError
from ..runtime.stored import StoredKind, StoredMatrix, stored
from .reference_stored import TILE

BLOCKS = {8: StoredKind.Q8_0, 4: StoredKind.Q4_0}
"""The kind of blocks that weights of so many bits are rounded to."""
_SHRINKS = tuple(1 - step / 40 for step in range(16))
"""Of a block's largest scale: a smaller one cuts off a few numbers, and is finer for all others."""


def quantised(weight: Tensor, bits: int) -> StoredMatrix:
    """A matrix [rows, columns] rounded to the nearest in 8 or 4 bits, with a scale for each 32 numbers of a row.

    weight: finite, of any float dtype, columns in multiples of 32.   Of 4 bits, each scale is that of least squared
    error among 16. Some rows at a time are rounded, so that temporaries are small.
    Raises KernelError where the columns do not fill blocks, or a scale is beyond float16.
    """
    kind = BLOCKS[bits]
    rows, columns = weight.shape
    if columns % kind.length:
        raise KernelError(f"rows of {columns} weights do not fill blocks of {kind.length}: quantise none of them")
    width = columns // kind.length * kind.size
    data = torch.empty((rows, width), dtype=torch.uint8, device=weight.device)
    for first in range(0, rows, max(1, TILE // max(columns, 1))):
        tile = weight[first : first + max(1, TILE // max(columns, 1))].float().reshape(-1, kind.length)
        blocks = _eight_bits(tile) if bits == 8 else _four_bits(tile)
        data[first : first + len(blocks) * kind.size // width] = blocks.view(-1, width)
    return stored(data, kind, columns)


def _eight_bits(x: Tensor) -> Tensor:
    scale = _in_half(x.abs().amax(1, keepdim=True) / 127)
    codes = _over(x, scale).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([_bytes(scale), codes.view(torch.uint8)], 1)


def _four_bits(x: Tensor) -> Tensor:
    """Codes 0 to 15 stand for -8 to 7 steps; so the number of largest magnitude is 8 steps below."""
    extreme = x.gather(1, x.abs().argmax(1, keepdim=True))
    best = torch.full_like(extreme, torch.inf)
    scale, steps = torch.zeros_like(extreme), torch.zeros_like(x)
    for shrink in _SHRINKS:
        tried = _in_half(extreme * (-shrink / 8))
        rounded = _over(x, tried).round().clamp(-8, 7)
        error = (x - rounded * tried).square().sum(1, keepdim=True)
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, tried, scale)
        steps = torch.where(better, rounded, steps)
    codes = (steps + 8).to(torch.uint8)
    return torch.cat([_bytes(scale), codes[:, :16] | codes[:, 16:] << 4], 1)


def _in_half(scale: Tensor) -> Tensor:
    """A scale as float16 keeps it, in float32."""
    half = scale.half()
    if not bool(half.isfinite().all()):
        raise KernelError(f"a block of weights needs the scale {float(scale.abs().max()):.3g}, which float16 lacks")
    return half.float()


def _over(x: Tensor, scale: Tensor) -> Tensor:
    """X / scale, and 0 where the scale is 0."""
    return x / torch.where(scale == 0, torch.inf, scale)


def _bytes(scale: Tensor) -> Tensor:
    return scale.half().view(torch.uint8)
