"""Rotary positions of a GGUF file, in the words of config.json.

As llama.cpp reads them: a factor without a type scales linearly, a type "none" does not scale whatever the factor is,
and tensors divide each frequency. It rotates whole heads in every architecture that is read here.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import ModelFileError, UnsupportedModelError
from ..rope import RopeConfig, inverse_frequencies
from .gguf_metadata import Metadata

_DIVISORS, _SHORT, _LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
ROPE_TENSORS = (_DIVISORS, _SHORT, _LONG)
"""Tensors that divide the rotary frequencies: for all lengths, or for those below and above the original length."""


def rope(metadata: Metadata, name: str, head_dim: int, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`. name: the architecture's.   tensors: those of `ROPE_TENSORS` that there are."""
    theta = metadata.number(f"{name}.rope.freq_base", RopeConfig.theta)
    turned = metadata.count(f"{name}.rope.dimension_count", head_dim)
    if turned != head_dim:
        raise UnsupportedModelError(
            f"{metadata.path}: {name}.rope.dimension_count={turned} is not supported: only {head_dim}, "
            "the size of a head, is"
        )
    for key, tensor in tensors.items():
        if name != "llama" or tensor.shape != (head_dim // 2,) or not (tensor.isfinite() & (tensor > 0)).all():
            raise UnsupportedModelError(
                f"{metadata.path}: the tensor {key} with the shape {list(tensor.shape)} is not supported: "
                f"only in llama, and with {head_dim // 2} numbers above 0"
            )
    return {"rope_theta": theta, "rope_scaling": _scaling(_Scaling(metadata, name), theta, tensors)}


class _Scaling:
    """The entries below ARCHITECTURE.rope.scaling."""

    def __init__(self, metadata: Metadata, name: str) -> None:
        self.metadata = metadata
        self._name = name
        self.kind = metadata.text(f"{name}.rope.scaling.type", "linear")
        old = metadata.number(f"{name}.rope.scale_linear", 0.0)
        said = metadata.has(f"{name}.rope.scaling.type") and self.kind in ("linear", "yarn") and not old
        self.factor = self.number("factor", None if said else old) or 1.0
        self.attention = self.number("attn_factor", 1.0)
        self.original = metadata.count(f"{name}.rope.scaling.original_context_length", 0, least=0)
        if self.factor <= 0 or self.attention <= 0:
            raise ModelFileError(f"{metadata.path}: {name}.rope.scaling has a factor that is not above 0")

    def number(self, key: str, default: float | None) -> float:
        return self.metadata.number(f"{self._name}.rope.scaling.{key}", default)

    def refused(self, what: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.metadata.path}: {self._name}.rope.scaling {what} is not supported")

    @property
    def original_length(self) -> int:
        """The length that the model was trained on before its context was stretched."""
        return self.original or self.metadata.count(f"{self._name}.context_length")


def _scaling(given: _Scaling, theta: float, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    if given.kind not in ("none", "linear", "yarn", "longrope"):
        raise given.refused(f"of the type {given.kind!r}")
    if given.kind == "longrope" or _SHORT in tensors or _LONG in tensors:
        return _longrope(given, tensors)
    factor = 1.0 if given.kind == "none" else given.factor
    if _DIVISORS in tensors:
        if factor != 1.0 or given.attention != 1.0 or given.kind == "yarn":
            raise given.refused(f"beside the tensor {_DIVISORS}")
        return _divided(theta, tensors[_DIVISORS], given)
    if given.kind == "yarn":
        return _yarn(given)
    if given.attention != 1.0:
        raise given.refused(f"with attn_factor={given.attention} and the type {given.kind!r}")
    return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}


def _yarn(given: _Scaling) -> dict[str, Any]:
    usual = 0.1 * math.log(max(given.factor, 1.0)) + 1.0
    accepted = {"yarn_ext_factor": (1.0, -1.0), "yarn_attn_factor": (1.0, usual), "yarn_log_multiplier": (0.0,)}
    for key, values in accepted.items():
        value = given.number(key, values[0])
        if not any(math.isclose(value, known, rel_tol=1e-4) for known in values):
            raise given.refused(f"with {key}={value}")
    scaling = {
        "rope_type": "yarn",
        "factor": given.factor,
        "original_max_position_embeddings": given.original_length,
        "beta_fast": given.number("yarn_beta_fast", 32.0),
        "beta_slow": given.number("yarn_beta_slow", 1.0),
    }
    if given.attention != 1.0:
        scaling["attention_factor"] = given.attention * usual
    return scaling


def _longrope(given: _Scaling, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    if given.kind != "longrope" or tensors.keys() != {_SHORT, _LONG} or given.factor != 1.0:
        raise given.refused(
            f"of the type {given.kind!r} with the factor {given.factor} and the tensors {', '.join(tensors) or 'none'}"
        )
    return {
        "rope_type": "longrope",
        "short_factor": tensors[_SHORT].tolist(),
        "long_factor": tensors[_LONG].tolist(),
        "original_max_position_embeddings": given.original_length,
        "attention_factor": given.attention,
    }


def _divided(theta: float, factors: Tensor, given: _Scaling) -> dict[str, Any]:
    """The llama3 scaling that divisors came from, else the divisors themselves, in the words of longrope."""
    scaled = RopeConfig(theta, "llama3", float(factors.max()))
    head_dim = 2 * factors.numel()
    expected = inverse_frequencies(RopeConfig(theta), head_dim) / inverse_frequencies(scaled, head_dim)
    if not torch.allclose(factors.float(), expected, rtol=1e-3):
        same = factors.tolist()
        return {
            "rope_type": "longrope",
            "short_factor": same,
            "long_factor": same,
            "original_max_position_embeddings": given.original_length,
            "attention_factor": 1.0,
        }
    return {
        "rope_type": "llama3",
        "factor": scaled.factor,
        "low_freq_factor": scaled.low_freq_factor,
        "high_freq_factor": scaled.high_freq_factor,
        "original_max_position_embeddings": scaled.original_max_positions,
    }
