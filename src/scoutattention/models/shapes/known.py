"""Shapes of well-known models, to plan for and to measure speed on without weights. No PyTorch.

Source of each: what shape and cost depend on of the config.json that its makers publish on the Hugging Face hub.
"tiny" is nobody's, for tests.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ...config import DTypeName, WeightsName
from ...errors import ModelNotFoundError, nearest
from ...shape import NamedShape
from ..file_fields import Entries, read_json
from ..resolve import gguf_file
from .sizes import QUANTISED_BY, checkpoint_dtype, family_of, read_shape, refuse_unsupported

Raw = Mapping[str, Any]
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_LLAMA: Raw = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "dtype": "bfloat16"}
_LLAMA3 = {**_LLAMA, "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500_000}
_MISTRAL = {
    **_LLAMA,
    "architectures": ["MistralForCausalLM"],
    "head_dim": 128,
    "vocab_size": 131072,
    "rope_theta": 1_000_000,
    "sliding_window": None,
}
_QWEN2: Raw = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rope_theta": 1_000_000,
    "rms_norm_eps": 1e-6,
    "dtype": "bfloat16",
}
_QWEN3 = {
    **_QWEN2,
    "architectures": ["Qwen3ForCausalLM"],
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}
_TIED: Raw = {"tie_word_embeddings": True}
_SMALL_QWEN2 = {**_TIED, "vocab_size": 151936}


def _llama3(factor: float) -> Raw:
    ends = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {**_LLAMA3, "rope_scaling": {"rope_type": "llama3", "factor": factor, **ends}}


def _sized(base: Raw, *sizes: int, **more: object) -> Raw:
    """sizes: hidden, intermediate, layers, query heads, KV heads."""
    return {**base, **dict(zip(_SIZES, sizes, strict=True)), **more}


KNOWN_SHAPES: Mapping[str, Raw] = {
    "qwen3-0.6b": _sized(_QWEN3, 1024, 3072, 28, 16, 8, **_TIED),
    "qwen3-1.7b": _sized(_QWEN3, 2048, 6144, 28, 16, 8, **_TIED),
    "qwen3-4b": _sized(_QWEN3, 2560, 9728, 36, 32, 8, **_TIED),
    "qwen3-8b": _sized(_QWEN3, 4096, 12288, 36, 32, 8),
    "qwen3-14b": _sized(_QWEN3, 5120, 17408, 40, 40, 8),
    "qwen3-32b": _sized(_QWEN3, 5120, 25600, 64, 64, 8),
    "qwen2.5-0.5b": _sized(_QWEN2, 896, 4864, 24, 14, 2, **_SMALL_QWEN2),
    "qwen2.5-1.5b": _sized(_QWEN2, 1536, 8960, 28, 12, 2, **_SMALL_QWEN2),
    "qwen2.5-7b": _sized(_QWEN2, 3584, 18944, 28, 28, 4),
    "qwen2.5-14b": _sized(_QWEN2, 5120, 13824, 48, 40, 8),
    "qwen2.5-32b": _sized(_QWEN2, 5120, 27648, 64, 40, 8),
    "qwen2.5-72b": _sized(_QWEN2, 8192, 29568, 80, 64, 8),
    "llama-3.2-1b": _sized(_llama3(32.0), 2048, 8192, 16, 32, 8, head_dim=64, **_TIED),
    "llama-3.2-3b": _sized(_llama3(32.0), 3072, 8192, 28, 24, 8, head_dim=128, **_TIED),
    "llama-3.1-8b": _sized(_llama3(8.0), 4096, 14336, 32, 32, 8),
    "llama-3.1-70b": _sized(_llama3(8.0), 8192, 28672, 80, 64, 8),
    "mistral-7b-v0.3": _sized(_MISTRAL, 4096, 14336, 32, 32, 8, vocab_size=32768, max_position_embeddings=32768),
    "mistral-nemo-12b": _sized(_MISTRAL, 5120, 14336, 40, 32, 8, max_position_embeddings=131072),
    "mistral-small-24b": _sized(
        _MISTRAL, 5120, 32768, 40, 32, 8, max_position_embeddings=32768, rope_theta=100_000_000
    ),
    "smollm2-135m": _sized(_LLAMA, 576, 1536, 30, 9, 3, vocab_size=49152, max_position_embeddings=8192, **_TIED),
    "smollm2-1.7b": _sized(_LLAMA, 2048, 8192, 24, 32, 32, vocab_size=49152, max_position_embeddings=8192, **_TIED),
    "tiny": _sized(_LLAMA, 64, 128, 4, 4, 2, vocab_size=256, max_position_embeddings=4096, dtype="float32"),
}


SAME_SHAPE = ("-instruct", "-base")
"""Ends of the names of models that have the shape of the one without."""


def known_shape(name: str) -> str | None:
    """The known shape that a model's name on the hub stands for, as "Qwen/Qwen3-8B"; None where it is none."""
    own = name.rpartition("/")[2].lower().removeprefix("meta-")
    for end in SAME_SHAPE:
        own = own.removesuffix(end)
    return own if own in KNOWN_SHAPES else None


def shape_config(name: str) -> Raw:
    """The config.json of a known model, or at a path. Raises ModelNotFoundError where it is neither."""
    path = Path(name).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if name and path.is_file():
        return read_json(path)
    known = known_shape(name)
    if known is None and path.suffix == ".json":
        raise ModelNotFoundError(f"there is no file {path}: give the path of a model's config.json")
    if known is None:
        own = name.rpartition("/")[2]
        raise ModelNotFoundError(
            f"no model {name!r} is known: {nearest(own, KNOWN_SHAPES)}, or the path of a folder with a config.json"
        )
    return KNOWN_SHAPES[known]


def read_model(name: str, dtype: DTypeName = "auto", weights: WeightsName = "auto") -> NamedShape:
    """A known model, or the one of a config.json or a .gguf file. PyTorch is loaded where weights are quantised.

    dtype: "auto" is what config.json gives, or bfloat16; float32 for a .gguf file.   weights: see `EngineConfig`.
    Raises ModelNotFoundError, ModelFileError, UnsupportedModelError, and ConfigError for weights that are quantised
    already and are to be quantised.
    """
    file = gguf_file(name)
    if file is not None:
        in_file: NamedShape = import_module(f"{__package__}.quantised").gguf_model(name, file, dtype, weights)
        return in_file
    raw = shape_config(name)
    entries = Entries(raw, "config.json")
    family, own = family_of(entries), "bfloat16" if weights == "bf16" else checkpoint_dtype(raw) or "bfloat16"
    shape = read_shape(entries, family, own if dtype == "auto" else dtype)
    refuse_unsupported(entries, family, shape)
    tied, size = entries.switch("tie_word_embeddings", False), None
    if weights != "auto" or any(raw.get(key) is not None for key in QUANTISED_BY):
        size = import_module(f"{__package__}.quantised").block_bytes(entries, shape, weights, tied=tied)
    return NamedShape(name, shape, tied, size, family.trained)
