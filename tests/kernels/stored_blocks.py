"""Random blocks of every kind that a file may keep, with scales from tiny to extreme."""

import gguf
import torch
from torch import Tensor

from scoutattention.runtime.stored import StoredKind, StoredMatrix, stored

QUANTISED = [kind for kind in StoredKind if kind.dtype is None]


def random_blocks(kind: StoredKind, rows: int, columns: int, most: float = 2.0) -> StoredMatrix:
    """Any bytes, with scales of magnitudes up to `most`."""
    if kind.dtype is not None:
        numbers = torch.randn(rows, columns).to(kind.dtype)
        return stored(numbers.view(torch.uint8), kind, columns)
    blocks = torch.randint(256, (rows, columns // kind.length, kind.size), dtype=torch.uint8)
    for at in kind.scales:
        scale = (torch.rand(rows, columns // kind.length, 1) * 2 - 1) * most
        blocks[..., at : at + 2] = scale.half().view(torch.uint8)
    return stored(blocks.flatten(1), kind, columns)


def exact(weight: StoredMatrix) -> Tensor:
    """Its numbers as the package gguf computes them, in float64."""
    return torch.cat([_dequantised(part.data, part.kind) for part in weight.parts]).double()


def _dequantised(data: Tensor, kind: StoredKind) -> Tensor:
    return torch.from_numpy(gguf.quants.dequantize(data.numpy(), gguf.GGMLQuantizationType(kind.number)))
