"""Integer codes and numbers as stored blocks of 32 columns, in plain PyTorch."""

import torch
from torch import Tensor

from ..runtime.stored import StoredKind, StoredMatrix, stored

COLUMNS = 32
"""Of a block in each kind that is made here."""
MOST_SCALE = 65504.0
"""Of float16, in which blocks have their scales."""


def blocks_of_codes(codes: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> StoredMatrix:
    """A matrix of the numbers (code - zero) * scale.

    codes: uint8 [rows, columns], from 0 to 2^bits - 1; columns are a multiple of 32.   bits: 4 or 8.
    scales, zeros: float32 and int32 [rows, columns / 32]; scales are rounded to float16.
    Zeros of half the range make Q4_0 and Q8_0, which have none. Others make Q4_1, whose blocks have -zero * scale in
    float16; in 8 bits there is no kind for them, and every zero must be 128.
    """
    blocks = codes.view(len(codes), -1, COLUMNS)
    scale = scales.half()[..., None]
    if bits == 8:
        return _stored(StoredKind.Q8_0, codes, scale.view(torch.uint8), blocks ^ 128)
    halves = blocks[..., :16] | blocks[..., 16:] << 4
    if bool((zeros == 8).all()):
        return _stored(StoredKind.Q4_0, codes, scale.view(torch.uint8), halves)
    least = (-zeros[..., None] * scale.float()).half()
    return _stored(StoredKind.Q4_1, codes, scale.view(torch.uint8), least.view(torch.uint8), halves)


def quantised(numbers: Tensor, kind: StoredKind) -> StoredMatrix:
    """Numbers [rows, columns] rounded to the nearest codes, each 32 columns with a scale of their own.

    kind: Q8_0, whose codes are from -127 to 127, or Q4_1, whose codes reach from the least number to the largest.
    Numbers must be finite; columns are a multiple of 32.
    """
    blocks = numbers.float().view(len(numbers), -1, COLUMNS)
    if kind is StoredKind.Q8_0:
        scale = (blocks.abs().amax(-1) / 127).half()
        codes = _divided(blocks, scale).round_().clamp_(-127, 127).to(torch.int8).view(torch.uint8) ^ 128
        return blocks_of_codes(codes.flatten(1), scale.float(), torch.full_like(scale, 128, dtype=torch.int32), 8)
    least = blocks.amin(-1).half()
    scale = ((blocks.amax(-1) - least.float()) / 15).half()
    codes = _divided(blocks - least.float()[..., None], scale).round_().clamp_(0, 15).to(torch.uint8)
    halves = codes[..., :16] | codes[..., 16:] << 4
    parts = (part[..., None].view(torch.uint8) for part in (scale, least))
    return _stored(StoredKind.Q4_1, numbers, *parts, halves)


def _divided(blocks: Tensor, scale: Tensor) -> Tensor:
    """Blocks [..., 32] over their scales; all is 0 where the scale is."""
    wide = scale.float()[..., None]
    return blocks / wide.where(wide > 0, torch.inf)


def _stored(kind: StoredKind, matrix: Tensor, *fields: Tensor) -> StoredMatrix:
    """Blocks of fields, uint8 [rows, blocks, bytes] each, one behind the other."""
    return stored(torch.cat(fields, -1).flatten(1), kind, matrix.shape[1])
