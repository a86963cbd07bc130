"""What stored blocks stand for, as the package gguf computes it."""

import gguf
import torch
from torch import Tensor

from scoutattention.bench.kernels.stored import random_blocks
from scoutattention.runtime.stored import StoredKind, StoredMatrix

__all__ = ["exact", "random_blocks"]


def exact(weight: StoredMatrix) -> Tensor:
    """Its numbers as the package gguf computes them, in float64."""
    return torch.cat([_dequantised(part.data, part.kind) for part in weight.parts]).double()


def _dequantised(data: Tensor, kind: StoredKind) -> Tensor:
    return torch.from_numpy(gguf.quants.dequantize(data.numpy(), gguf.GGMLQuantizationType(kind.number)))
