"""What a checkpoint's config.json says, checked: a model is either run exactly or refused by name.

What it leaves out is what the family's class in transformers has; what that class does not look at is ignored here too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..shape import ModelShape
from .file_fields import Entries
from .formats.quantised.scheme import read_scheme
from .rope import RopeConfig
from .rope_settings import longest, read_rope
from .shapes.sizes import family_of, read_shape, refuse_unsupported

EPSILON_MOST = 1.0


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
        refuse_unsupported(entries, family, shape)
        read_scheme(entries)
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
