"""What a GGUF file's metadata says about the model, in the words of config.json, and what its tensors are called there.

A setting that llama.cpp applies and that has no word here is refused by its name.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ...errors import ModelFileError, UnsupportedModelError
from .gguf_metadata import Metadata
from .gguf_rope import ROPE_TENSORS, rope

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NO_EFFECT = (
    "vocab_size",
    "tensor_data_layout",
    "pooling_type",
    "attention.layer_norm_epsilon",
    "rope.scaling.finetuned",
    "classifier.output_labels",
)
"""Entries of an architecture that change nothing of what a decoder computes."""

_FACTORS = ("logit_scale", "residual_scale", "embedding_scale")
"""Entries that multiply something; 1 is as good as none."""


def tensor_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor; UnsupportedModelError for one that no supported model has."""
    stem, _, kind = name.rpartition(".")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{kind}"
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if match is None or match[2] not in _INNER:
        raise UnsupportedModelError(f"the GGUF tensor {name} is not supported: it belongs to another kind of model")
    return f"model.layers.{match[1]}.{_INNER[match[2]]}.{kind}"


def hf_config(
    metadata: Metadata, shapes: Mapping[str, tuple[int, ...]], rope_tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The contents of config.json, without the dtype.

    shapes: of the file's tensors by GGUF name, rows first.
    rope_tensors: those of `ROPE_TENSORS` that the file has, float32 [D / 2].
    Raises ModelFileError where entries or shapes contradict each other, UnsupportedModelError for what is not run.
    """
    name = metadata.text("general.architecture")
    if name not in _ARCHITECTURES:
        raise UnsupportedModelError(
            f"{metadata.path}: the GGUF architecture {name} is not supported: supported are {', '.join(_ARCHITECTURES)}"
        )
    heads, hidden = metadata.count(f"{name}.attention.head_count"), metadata.count(f"{name}.embedding_length")
    head_dim = metadata.count(f"{name}.attention.key_length", hidden // heads)
    config = {
        "architectures": [_ARCHITECTURES[name]],
        "model_type": name,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": metadata.count(f"{name}.feed_forward_length"),
        "num_hidden_layers": metadata.count(f"{name}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.count(f"{name}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": metadata.count(f"{name}.context_length"),
        "rms_norm_eps": metadata.number(f"{name}.attention.layer_norm_rms_epsilon"),
        "vocab_size": len(metadata.texts("tokenizer.ggml.tokens")),
        "tie_word_embeddings": "output.weight" not in shapes,
        "attention_bias": name != "qwen2" and "blk.0.attn_q.bias" in shapes,
        "bos_token_id": _token_id(metadata, "bos"),
        "eos_token_id": _token_id(metadata, "eos"),
        **rope(metadata, name, head_dim, rope_tensors),
    }
    _refuse_unknown(metadata, name, head_dim)
    _check_shapes(metadata, config, shapes)
    return config


def paired_rows(config: Mapping[str, Any], name: str) -> int:
    """The size of a head where a GGUF tensor's rows have the two channels that turn together side by side; else 0."""
    paired = config["model_type"] == "llama" and name.split(".")[-2] in ("attn_q", "attn_k")
    return int(config["head_dim"]) if paired else 0


def expected_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """GGUF names and shapes of the tensors that a config.json implies, one at a time: there may be too many."""
    hidden, middle, vocabulary = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    queries, kv = (config[key] * config["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    yield "token_embd.weight", (vocabulary, hidden)
    yield "output_norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "output.weight", (vocabulary, hidden)
    projections = {"attn_q": (queries, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden)}
    projections["attn_output"] = (hidden, queries)
    biased = projections if config["attention_bias"] else {}
    if config["model_type"] == "qwen2":
        biased = {part: shape for part, shape in projections.items() if part != "attn_output"}
    feed_forward = {"ffn_gate": (middle, hidden), "ffn_up": (middle, hidden), "ffn_down": (hidden, middle)}
    norms = dict.fromkeys(("attn_norm", "ffn_norm"), (hidden,))
    if config["model_type"] == "qwen3":
        norms |= dict.fromkeys(("attn_q_norm", "attn_k_norm"), (config["head_dim"],))
    for layer in range(config["num_hidden_layers"]):
        for part, shape in (norms | projections | feed_forward).items():
            yield f"blk.{layer}.{part}.weight", shape
        for part, shape in biased.items():
            yield f"blk.{layer}.{part}.bias", shape[:1]


def _check_shapes(metadata: Metadata, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    known = set(ROPE_TENSORS)
    for name, shape in expected_shapes(config):
        if name not in shapes:
            raise ModelFileError(f"{metadata.path} has no tensor {name}, which its metadata imply")
        if shapes[name] != shape:
            raise ModelFileError(
                f"{metadata.path}: the tensor {name} has the shape {list(shapes[name])}, "
                f"where the metadata imply {list(shape)}"
            )
        known.add(name)
    leftover = sorted(shapes.keys() - known)
    if leftover:
        raise UnsupportedModelError(
            f"{metadata.path} has {len(leftover)} tensors that {config['architectures'][0]} does not use, "
            f"the first is {leftover[0]}: it is another kind of model"
        )


def _refuse_unknown(metadata: Metadata, name: str, head_dim: int) -> None:
    """Refuse each entry that nobody has read, except where it is off or has no effect."""
    if metadata.count(f"{name}.attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError(
            f"{metadata.path}: {name}.attention.value_length is not {name}.attention.key_length, {head_dim}, "
            "and heads of two sizes are not supported"
        )
    window, context = (
        metadata.count(f"{name}.attention.sliding_window", 0, least=0),
        metadata.count(f"{name}.context_length"),
    )
    if 0 < window < context:
        raise UnsupportedModelError(
            f"{metadata.path}: {name}.attention.sliding_window={window}, below the {context} tokens of a context, "
            "is not supported"
        )
    if not metadata.flag(f"{name}.attention.causal", True):
        raise UnsupportedModelError(f"{metadata.path}: {name}.attention.causal=false is not supported")
    if metadata.text("general.type", "model") != "model":
        raise UnsupportedModelError(f"{metadata.path}: general.type={metadata.text('general.type')!r} is not a model")
    unread = metadata.unread(f"{name}.") | metadata.unread("tokenizer.ggml.suppress_tokens")
    for key, value in unread.items():
        short = key.removeprefix(f"{name}.")
        if short in _NO_EFFECT or not value or (short in _FACTORS and value == 1.0):
            continue
        raise UnsupportedModelError(
            f"{metadata.path}: {key}={str(value)[:60]} is not supported: only models without it are"
        )


def _token_id(metadata: Metadata, part: str) -> int | None:
    """The id of a special token that the file may give."""
    key = f"tokenizer.ggml.{part}_token_id"
    return metadata.count(key, least=0) if metadata.has(key) else None
