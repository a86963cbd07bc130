"""Random weights of a shape, for measuring speed where there is no model."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from ...errors import UnsupportedModelError
from ..config import ModelConfig
from ..decoder import Decoder
from ..file_fields import Entries
from ..loader import read_weights
from ..shapes.sizes import checkpoint_dtype
from .quantised.scheme import read_scheme
from .safetensors import Tensors

CHANGE = 0.4
"""What scales the two projections back into the residual stream: with it a layer changes the stream by about a sixth,
so that scouts are about as far from true queries as calibrated ones of real models are."""


def dummy_config(raw: Mapping[str, Any], longest: int) -> ModelConfig:
    """What `dummy_decoder` is made of.   Raises UnsupportedModelError for a config.json of quantised weights."""
    if read_scheme(Entries(raw, "config.json")) is not None:
        raise UnsupportedModelError(
            "random weights are not quantised, and config.json has a quantization_config: take it out"
        )
    config = ModelConfig.from_hf(raw, checkpoint_dtype(raw) or "float32")
    return replace(config, shape=replace(config.shape, max_positions=max(longest, config.shape.max_positions)))


def dummy_decoder(raw: Mapping[str, Any], longest: int, device: torch.device) -> Decoder:
    """A decoder of random weights, made on the device in the dtype that a config.json gives (float32 if none).

    longest: positions that it must take, even if they are more than the config allows: speed does not depend on it.
    """
    config = dummy_config(raw, longest)
    checkpoint = RandomCheckpoint(getattr(torch, config.shape.dtype), device)
    return Decoder(config, read_weights(checkpoint, config, device))


class RandomCheckpoint(Tensors):
    """A checkpoint that has every tensor: norms of ones, biases of zeros, and normal numbers that keep their size."""

    path = Path("dummy")

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.unread: set[str] = set()
        self._dtype = dtype
        self._device = device
        self._generator = torch.Generator(device).manual_seed(0)

    @override
    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, device=self._device)
        numbers = torch.randn(shape, generator=self._generator, dtype=self._dtype, device=self._device)
        return numbers.mul_(_scale(name, shape[-1]))


def _scale(name: str, inputs: int) -> float:
    if "embed_tokens" in name:
        return 1.0
    back = name.endswith(("o_proj.weight", "down_proj.weight"))
    return (CHANGE if back else 1.0) / math.sqrt(inputs)
