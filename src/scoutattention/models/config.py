"""What a checkpoint's config.json says, checked: a model is either run exactly or refused by name.

What it leaves out is what the family's class in transformers has; what that class does not look at is ignored here too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UnsupportedModelError
from ..shape import ModelShape
from .file_fields import Entries, shown
from .formats.quantised.scheme import read_scheme
from .rope import RopeConfig
from .rope_settings import longest, read_rope
from .shapes.sizes import Family, family_of, read_shape

EPSILON_MOST = 1.0
_WINDOW, _FIRST_WITH_WINDOW = 4096, 28
"""Keys that attention sees where config.json gives no `sliding_window`, and the first layer of "some" that has one."""
_ELSEWHERE = {
    "attention_chunk_size": "attention must see every position",
    "per_layer_config": "all layers must be alike",
    "transformers_weights": "weights are read from model.safetensors or from the files of its index",
}
"""Entries that no supported model has, whatever they say."""


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

    @property
    def weights(self) -> int:
        """Numbers in all matrices; norms and biases are few beside them."""
        return self.shape.matrix_numbers(tied=self.tie_word_embeddings)

    @classmethod
    def from_hf(
        cls,
        raw: Mapping[str, Any],
        dtype: str,
        rope_scaling: Mapping[str, Any] | None = None,
        source: str = "config.json",
    ) -> "ModelConfig":
        """Read the contents of a Hugging Face config.json, in the spelling of transformers 4 or 5.

        dtype: of weights and KV cache: float32, bfloat16 or float16.
        rope_scaling: what takes the place of the file's own; see `read_rope`.
        source: what messages call the file.
        Raises UnsupportedModelError naming what is not supported, ModelFileError for a missing or malformed entry, and
        ConfigError for a `rope_scaling` that is at fault.
        """
        entries = Entries(raw, source)
        family = family_of(entries)
        shape = read_shape(entries, family, dtype)
        rope = read_rope(entries, shape.head_dim, shape.max_positions, rope_scaling)
        shape = replace(shape, max_positions=longest(rope, shape.max_positions))
        _refuse_unsupported(entries, family)
        _refuse_window(entries, family, shape)
        asked = family.qkv_bias == "asked" and entries.switch("attention_bias", False)
        return cls(
            architecture=family.architecture,
            shape=shape,
            rope=rope,
            rms_norm_eps=entries.number("rms_norm_eps", 1e-6, most=EPSILON_MOST),
            qkv_bias=asked or family.qkv_bias == "yes",
            output_bias=asked,
            qk_norm=family.qk_norm,
            tie_word_embeddings=entries.switch("tie_word_embeddings", False),
        )


def _refuse_unsupported(config: Entries, family: Family) -> None:
    if config.raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise config.unsupported("hidden_act", "only 'silu' is")
    if family.mlp_bias and config.switch("mlp_bias", False):
        raise config.unsupported("mlp_bias", "only feed-forward layers without biases are")
    read_scheme(config)
    for key, advice in _ELSEWHERE.items():
        if config.raw.get(key) is not None:
            raise config.unsupported(key, advice)


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
