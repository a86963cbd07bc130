"""What a checkpoint's config.json says, checked: a model is either run exactly or refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from ..errors import ModelFileError, UnsupportedModelError
from ..shape import DTYPE_BYTES, ModelShape

RopeKind = Literal["default", "linear", "llama3"]

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_BIAS_IS_OPTIONAL = ("LlamaForCausalLM", "Qwen3ForCausalLM")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions: base `theta`, and how the frequencies are stretched for contexts longer than trained on.

    linear: every frequency is divided by `factor`.
    llama3: frequencies that turn fewer than `low_freq_factor` times in `original_max_positions` are divided by
        `factor`, those that turn more than `high_freq_factor` times are kept, and between the two it is blended.
    """

    theta: float = 10_000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """A decoder: its shape, and the switches in which the supported families differ.

    qkv_bias, output_bias: the attention's projections in and out have biases.
    qk_norm: queries and keys are normalised per head before they are rotated.
    """

    architecture: str
    shape: ModelShape
    rope: RopeConfig
    rms_norm_eps: float
    qkv_bias: bool
    output_bias: bool
    qk_norm: bool
    tie_word_embeddings: bool
    eos_token_ids: frozenset[int]

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], dtype: str) -> "ModelConfig":
        """Read the contents of a Hugging Face config.json, in the spelling of transformers 4 or 5.

        dtype: of weights and KV cache: float32, bfloat16 or float16.
        Raises UnsupportedModelError naming what is not supported, ModelFileError for a missing or malformed entry.
        """
        architecture = _architecture(raw)
        shape = _shape(raw, dtype)
        _refuse_unsupported(raw, shape)
        bias = architecture in _BIAS_IS_OPTIONAL and bool(raw.get("attention_bias", False))
        return cls(
            architecture=architecture,
            shape=shape,
            rope=_rope(raw, shape.max_positions),
            rms_norm_eps=_number(raw, "rms_norm_eps", 1e-6),
            qkv_bias=bias or architecture == "Qwen2ForCausalLM",
            output_bias=bias,
            qk_norm=architecture == "Qwen3ForCausalLM",
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            eos_token_ids=token_ids(raw.get("eos_token_id")),
        )


def checkpoint_dtype(raw: Mapping[str, Any]) -> str | None:
    """The dtype config.json gives for the weights, or None where it gives none."""
    dtype = raw.get("dtype") or raw.get("torch_dtype")
    return None if dtype is None else str(dtype).removeprefix("torch.")


def token_ids(value: int | list[int] | None) -> frozenset[int]:
    """The ids in an `eos_token_id` entry, which is one id, a list of them, or null."""
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)


def _architecture(raw: Mapping[str, Any]) -> str:
    names = raw.get("architectures") or ["none given"]
    if names[0] not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"the architecture {names[0]} is not supported: supported are {', '.join(ARCHITECTURES)}"
        )
    return str(names[0])


def _shape(raw: Mapping[str, Any], dtype: str) -> ModelShape:
    if dtype not in DTYPE_BYTES:
        raise UnsupportedModelError(f"the dtype {dtype} is not supported: choose {', '.join(DTYPE_BYTES)} as dtype")
    heads, hidden = _count(raw, "num_attention_heads"), _count(raw, "hidden_size")
    kv_heads = _count(raw, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise ModelFileError(f"config.json gives {heads} query heads, which {kv_heads} KV heads cannot share evenly")
    head_dim = _count(raw, "head_dim", hidden // heads)
    if head_dim % 2:
        raise UnsupportedModelError(f"head_dim={head_dim} is not supported: rotary positions need an even one")
    return ModelShape(
        num_layers=_count(raw, "num_hidden_layers"),
        num_query_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        hidden_size=hidden,
        intermediate_size=_count(raw, "intermediate_size"),
        vocab_size=_count(raw, "vocab_size"),
        max_positions=_count(raw, "max_position_embeddings"),
        dtype=dtype,
    )


def _refuse_unsupported(raw: Mapping[str, Any], shape: ModelShape) -> None:
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise UnsupportedModelError(f"hidden_act={raw['hidden_act']!r} is not supported: only 'silu' is")
    if raw.get("mlp_bias"):
        raise UnsupportedModelError("mlp_bias=true is not supported: only feed-forward layers without biases are")
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "an unnamed method")
        raise UnsupportedModelError(f"weights quantised with {method} are not supported: use an unquantised checkpoint")
    window = raw.get("sliding_window") if raw.get("use_sliding_window", True) else None
    if window is not None and window < shape.max_positions:
        raise UnsupportedModelError(
            f"sliding_window={window}, below the {shape.max_positions} positions of the model, is not supported"
        )
    other = sorted(set(raw.get("layer_types") or ()) - {"full_attention", "sliding_attention"})
    if other:
        raise UnsupportedModelError(f"layers of type {other[0]} are not supported: only full_attention is")


def _rope(raw: Mapping[str, Any], max_positions: int) -> RopeConfig:
    given = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    theta = _number(given, "rope_theta", _number(raw, "rope_theta", RopeConfig.theta))
    for source in (given, raw):
        if source.get("partial_rotary_factor", 1.0) != 1.0:
            raise UnsupportedModelError(
                f"partial_rotary_factor={source['partial_rotary_factor']} is not supported: only 1.0 is"
            )
    if kind == "default":
        return RopeConfig(theta)
    if kind not in ("linear", "llama3"):
        raise UnsupportedModelError(f"rope_type={kind!r} is not supported: supported are default, linear and llama3")
    scaled = RopeConfig(theta, cast(RopeKind, kind), _number(given, "factor"))
    if kind == "linear":
        return scaled
    return RopeConfig(
        theta,
        "llama3",
        scaled.factor,
        _number(given, "low_freq_factor"),
        _number(given, "high_freq_factor"),
        _count(given, "original_max_position_embeddings", max_positions),
    )


def _count(raw: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = _given(raw, key, default)
    if not isinstance(value, int) or value < 1:
        raise ModelFileError(f"config.json gives {key}={value!r}, which is not a positive whole number")
    return value


def _number(raw: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = _given(raw, key, default)
    if not isinstance(value, int | float) or value <= 0:
        raise ModelFileError(f"config.json gives {key}={value!r}, which is not a positive number")
    return float(value)


def _given(raw: Mapping[str, Any], key: str, default: float | None) -> object:
    """The entry, or the default where it is absent or null."""
    value = raw.get(key)
    if value is None and default is None:
        raise ModelFileError(f"config.json does not give {key!r}")
    return default if value is None else value
