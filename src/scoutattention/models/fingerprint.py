"""A name for a model's weights, so that what was measured of one model is not used for another."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .decoder import Decoder, DecoderWeights

SAMPLED = 256
"""Elements of each tensor that are looked at, evenly spread."""


def fingerprint(decoder: Decoder) -> str:
    """16 hexadecimal digits of the configuration and some of every weight.

    Weights count rounded to bfloat16, so that a model has one fingerprint in float32 and in bfloat16.
    """
    config = replace(decoder.config, shape=replace(decoder.shape, dtype=""), eos_token_ids=frozenset())
    digest = hashlib.sha256(repr(config).encode())
    for weight in _tensors(decoder.weights):
        flat = weight.flatten()
        sample = flat[:: -(-flat.numel() // SAMPLED)].to("cpu", torch.bfloat16)
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def _tensors(weights: DecoderWeights) -> Iterator[Tensor]:
    yield from (weights.embedding, weights.norm, weights.head)
    for layer in weights.layers:
        yield from (value for value in vars(layer).values() if value is not None)
