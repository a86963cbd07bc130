"""What a GGUF file's metadata says about the model, in the words of config.json, and what its tensors are called there.

`fields` is the file's metadata: name to value, arrays as lists.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import ModelFileError, UnsupportedModelError
from ..rope import RopeConfig, inverse_frequencies

ROPE_FACTORS = "rope_freqs.weight"

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
    fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], rope_factors: Tensor | None
) -> dict[str, Any]:
    """The contents of config.json, without the dtype.

    shapes: of the file's tensors by GGUF name, rows first.
    rope_factors: what each rotary frequency is divided by, float32 [D / 2], for models that store it.
    """
    name = str(_entry(fields, "general.architecture"))
    if name not in _ARCHITECTURES:
        raise UnsupportedModelError(
            f"the GGUF architecture {name} is not supported: supported are {', '.join(_ARCHITECTURES)}"
        )
    if fields.get(f"{name}.expert_count"):
        raise UnsupportedModelError(f"a mixture of {fields[f'{name}.expert_count']} experts is not supported")
    heads, hidden = _entry(fields, f"{name}.attention.head_count"), _entry(fields, f"{name}.embedding_length")
    kv_heads = fields.get(f"{name}.attention.head_count_kv", heads)
    if isinstance(heads, list) or isinstance(kv_heads, list):
        raise UnsupportedModelError("head counts that differ between layers are not supported")
    head_dim = fields.get(f"{name}.attention.key_length", hidden // heads)
    config = {
        "architectures": [_ARCHITECTURES[name]],
        "model_type": name,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": _entry(fields, f"{name}.feed_forward_length"),
        "num_hidden_layers": _entry(fields, f"{name}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": _entry(fields, f"{name}.context_length"),
        "rms_norm_eps": _entry(fields, f"{name}.attention.layer_norm_rms_epsilon"),
        "vocab_size": _entry(shapes, "token_embd.weight")[0],
        "tie_word_embeddings": "output.weight" not in shapes,
        "attention_bias": name != "qwen2" and "blk.0.attn_q.bias" in shapes,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
        "sliding_window": fields.get(f"{name}.attention.sliding_window"),
    }
    return config | _rope(fields, name, head_dim, rope_factors)


def uninterleave(weight: Tensor, heads: int) -> Tensor:
    """Rows [heads * D, ...] with each rotated pair side by side, reordered to all firsts, then all seconds."""
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _rope(fields: Mapping[str, Any], name: str, head_dim: int, factors: Tensor | None) -> dict[str, Any]:
    theta = float(fields.get(f"{name}.rope.freq_base", RopeConfig.theta))
    turned = fields.get(f"{name}.rope.dimension_count", head_dim)
    if turned != head_dim:
        raise UnsupportedModelError(f"rotary positions on {turned} of {head_dim} channels are not supported")
    kind = fields.get(f"{name}.rope.scaling.type", "none")
    if factors is not None:
        scaling = _llama3(theta, factors)
    elif kind == "none":
        scaling = None
    else:
        scaling = {
            "rope_type": kind,
            "factor": _entry(fields, f"{name}.rope.scaling.factor"),
            "original_max_position_embeddings": fields.get(f"{name}.rope.scaling.original_context_length"),
        }
    return {"rope_theta": theta, "rope_scaling": scaling}


def _llama3(theta: float, factors: Tensor) -> dict[str, Any]:
    """The llama3 scaling that these divisors came from; only its usual band and 8,192 positions are known."""
    rope = RopeConfig(theta, "llama3", float(factors.max()))
    head_dim = 2 * factors.numel()
    expected = inverse_frequencies(RopeConfig(theta), head_dim) / inverse_frequencies(rope, head_dim)
    if not torch.allclose(factors.float(), expected, rtol=1e-3):
        raise UnsupportedModelError(f"the rotary factors in {ROPE_FACTORS} are not supported: they are not llama3's")
    return {
        "rope_type": "llama3",
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "original_max_position_embeddings": rope.original_max_positions,
    }


def _entry(fields: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401  (metadata is of any type)
    if key not in fields:
        raise ModelFileError(f"the GGUF file does not give {key}")
    return fields[key]
