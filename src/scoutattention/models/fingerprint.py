"""A name for a model's weights, so that what was measured of one model is not used for another."""

import hashlib
from dataclasses import replace

import torch
from torch import Tensor

from ..kernels.reference_stored import expand
from ..runtime.stored import StoredMatrix, stored
from .config import ModelConfig
from .layers import Weight

SAMPLED = 256
"""Elements of each tensor that are looked at, evenly spread."""


class Fingerprint:
    """Taken of a checkpoint's tensors while they are read, so that a rank that keeps parts of them has it too.

    Weights count rounded to bfloat16, so that a model has one fingerprint in float32 and in bfloat16.
    """

    def __init__(self, config: ModelConfig) -> None:
        named = replace(config, shape=replace(config.shape, dtype=""))
        self._digest = hashlib.sha256(repr(named).encode())

    def see(self, weight: Weight, paired: int = 0) -> None:
        """Take some of a weight as it is stored. The order of the weights matters.

        paired: see `Tensors.paired`; the sample is the one of halves.
        """
        size = weight.shape[0] * weight.shape[-1] if isinstance(weight, StoredMatrix) else weight.numel()
        width = weight.shape[-1] if len(weight.shape) > 1 else 1
        rows, columns = _divided(torch.arange(0, size, -(-size // SAMPLED)), width)
        if paired:
            head, channel = _divided(rows, paired)
            half, pair = _divided(channel, paired // 2)
            rows = head * paired + 2 * pair + half
        sample = _numbers(weight, rows, columns).to("cpu", torch.bfloat16)
        self._digest.update(sample.view(torch.int16).numpy().tobytes())

    def __str__(self) -> str:
        """16 hexadecimal digits of the configuration and of what was seen."""
        return self._digest.hexdigest()[:16]


def _divided(numbers: Tensor, by: int) -> tuple[Tensor, Tensor]:
    return numbers // by, numbers % by


def _numbers(weight: Weight, rows: Tensor, columns: Tensor) -> Tensor:
    """The numbers in the given rows and columns, int64 [n] each; of a stored matrix no other block is read."""
    width = weight.shape[1] if len(weight.shape) > 1 else 1
    if not isinstance(weight, StoredMatrix):
        return weight.flatten()[(rows * width + columns).to(weight.device)]
    (part,) = weight.parts
    if weight.order is not None:
        columns = weight.order.argsort()[columns]
    block, place = _divided(columns, part.kind.length)
    blocks = part.data.view(-1, part.kind.size).index_select(0, rows * (width // part.kind.length) + block)
    numbers = expand(stored(blocks, part.kind, part.kind.length), slice(None), torch.float32)
    return numbers.gather(1, place[:, None])[:, 0]
