"""The families of models that are supported, and the sizes that a config.json gives. No PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ModelFileError, UnsupportedModelError
from ...shape import DTYPE_BYTES, ModelShape
from ..file_fields import Entries, shown

HEAD_DIM_MOST = 1024
QUANTISED_BY = ("quantization_config", "compression_config")
"""Entries of a config.json that say how weights are quantised."""
_WINDOW, _FIRST_WITH_WINDOW = 4096, 28
"""Keys that attention sees where config.json gives no `sliding_window`, and the first layer of "some" that has one."""
_ELSEWHERE = {
    "attention_chunk_size": "attention must see every position",
    "per_layer_config": "all layers must be alike",
    "transformers_weights": "weights are read from model.safetensors or from the files of its index",
}
"""Entries that no supported model has, whatever they say."""


@dataclass(frozen=True)
class Family:
    """Models of one class of transformers, and what differs from those of others.

    sizes: what config.json may leave out.
    qkv_bias: "yes", "no", or "asked" where `attention_bias` says so, for the projection out as well.
    mlp_bias: whether it looks at the entry of that name.
    trained: positions that its makers' cards stretch by YaRN, where config.json has more of them; or None.
    window: of attention, whether "all" layers have one, "some" do where config.json switches it on, or "none" do.
    """

    architecture: str
    sizes: Mapping[str, int]
    qkv_bias: str
    window: str
    mlp_bias: bool = False
    qk_norm: bool = False
    trained: int | None = None


_SEVEN_B = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
_LLAMA = _SEVEN_B | {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048}
_MISTRAL = _LLAMA | {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072}
_QWEN = _SEVEN_B | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}
FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM", _LLAMA, qkv_bias="asked", window="none", mlp_bias=True),
    "mistral": Family("MistralForCausalLM", _MISTRAL, qkv_bias="no", window="all"),
    "qwen2": Family("Qwen2ForCausalLM", _QWEN, qkv_bias="yes", window="some"),
    "qwen3": Family(
        *("Qwen3ForCausalLM", _QWEN | {"head_dim": 128}), qkv_bias="asked", window="some", qk_norm=True, trained=32768
    ),
}
"""The families that are supported, by `model_type`."""


def checkpoint_dtype(raw: Mapping[str, Any]) -> str | None:
    """The dtype config.json gives for the weights, or None where it gives none."""
    entries = Entries(raw, "config.json")
    dtype = entries.optional_word("dtype") or entries.optional_word("torch_dtype")
    return None if dtype is None else dtype.removeprefix("torch.")


def family_of(config: Entries) -> Family:
    """By `model_type`, as in transformers; by `architectures` in a file without it.

    Both must agree; beside a `model_type` any class of the family will do, such as LlamaModel.
    """
    names, kind = config.optional_words("architectures") or [], config.optional_word("model_type")
    named = names[0] if names else None
    for name, family in FAMILIES.items():
        if (named or kind) and kind in (None, name) and _belongs(named, family, kind):
            return family
    given = ", ".join(
        f"{key}={shown(value)}" for key, value in (("architecture", named), ("model_type", kind)) if value
    )
    raise UnsupportedModelError(
        f"{config.source} gives {given or 'neither architectures nor model_type'}, which is not supported: supported "
        f"are {', '.join(f'{family.architecture} ({name})' for name, family in FAMILIES.items())}"
    )


def _belongs(named: str | None, family: Family, kind: str | None) -> bool:
    return named in (None, family.architecture) or (
        named is not None and kind is not None and named.lower().startswith(kind)
    )


def read_shape(config: Entries, family: Family, dtype: str) -> ModelShape:
    """The sizes that config.json gives, and those of its family where it gives none.   dtype: of weights and KV cache.

    Raises UnsupportedModelError or ModelFileError.
    """
    if dtype not in DTYPE_BYTES:
        raise UnsupportedModelError(f"the dtype {dtype} is not supported: choose {', '.join(DTYPE_BYTES)} as dtype")
    sizes = {key: config.count(key, family.sizes[key]) for key in _LLAMA}
    heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
    kv_heads = heads
    if config.raw.get("num_key_value_heads", 0) is not None:
        kv_heads = config.count("num_key_value_heads", family.sizes.get("num_key_value_heads", heads))
    if heads % kv_heads:
        raise ModelFileError(
            f"{config.source} gives {heads} query heads, which {kv_heads} KV heads cannot share evenly"
        )
    head_dim = hidden // heads
    if config.raw.get("head_dim", 0) is not None:
        head_dim = config.count("head_dim", family.sizes.get("head_dim", head_dim))
    if head_dim % 2 or not 0 < head_dim <= HEAD_DIM_MOST:
        raise UnsupportedModelError(
            f"head_dim={head_dim} of {config.source} is not supported: it must be even, from 2 to {HEAD_DIM_MOST}"
        )
    return ModelShape(
        num_layers=sizes["num_hidden_layers"],
        num_query_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        hidden_size=hidden,
        intermediate_size=sizes["intermediate_size"],
        vocab_size=sizes["vocab_size"],
        max_positions=sizes["max_position_embeddings"],
        dtype=dtype,
    )


def refuse_unsupported(config: Entries, family: Family, shape: ModelShape) -> None:
    """Raises UnsupportedModelError, naming the entry, for a model of a family that the decoder does not run as it is.

    shape: of the model, with the positions that it may be stretched to.
    """
    if config.raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise config.unsupported("hidden_act", "only 'silu' is")
    if family.mlp_bias and config.switch("mlp_bias", False):
        raise config.unsupported("mlp_bias", "only feed-forward layers without biases are")
    for key, advice in _ELSEWHERE.items():
        if config.raw.get(key) is not None:
            raise config.unsupported(key, advice)
    _refuse_window(config, family, shape)


def _refuse_window(config: Entries, family: Family, shape: ModelShape) -> None:
    """Refuse a model whose attention does not see every position."""
    types = config.optional_words("layer_types")
    if types is not None and len(types) != shape.num_layers:
        raise config.wrong("layer_types", f"of {shape.num_layers} entries, one for each layer")
    other = sorted(set(types or ()) - {"full_attention", "sliding_attention"})
    if other:
        raise UnsupportedModelError(f"layers of type {shown(other[0])} are not supported: only full_attention is")
    slides = family.window == "all" or "sliding_attention" in (types or ())
    if family.window == "some" and types is None and config.switch("use_sliding_window", False):
        slides = shape.num_layers > config.number("max_window_layers", _FIRST_WITH_WINDOW)
    if not slides:
        return
    window = config.optional_count("sliding_window", None if "sliding_window" in config else _WINDOW)
    if window is not None and window < shape.max_positions:
        raise UnsupportedModelError(
            f"sliding_window={window} of {config.source}, below the {shape.max_positions} positions of the model, is "
            f"not supported: with max_position_embeddings={window} there the model runs up to that length"
        )
