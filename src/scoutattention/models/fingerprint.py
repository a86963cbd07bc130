"""A name for a model's weights, so that what was measured of one model is not used for another."""

import hashlib
from dataclasses import replace

import torch
from torch import Tensor

from .config import ModelConfig

SAMPLED = 256
"""Elements of each tensor that are looked at, evenly spread."""


class Fingerprint:
    """Taken of a checkpoint's tensors while they are read, so that a rank that keeps parts of them has it too.

    Weights count rounded to bfloat16, so that a model has one fingerprint in float32 and in bfloat16.
    """

    def __init__(self, config: ModelConfig) -> None:
        named = replace(config, shape=replace(config.shape, dtype=""))
        self._digest = hashlib.sha256(repr(named).encode())

    def see(self, weight: Tensor) -> None:
        """Take some of a weight as it is stored. The order of the weights matters."""
        flat = weight.flatten()
        sample = flat[:: -(-flat.numel() // SAMPLED)].to("cpu", torch.bfloat16)
        self._digest.update(sample.view(torch.int16).numpy().tobytes())

    def __str__(self) -> str:
        """16 hexadecimal digits of the configuration and of what was seen."""
        return self._digest.hexdigest()[:16]
