"""A model of transformers over a decoder's own weights, to measure it against."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, Cache, PreTrainedModel
from transformers.utils import logging

from ...errors import ConfigError
from ...models.decoder import Decoder
from ...models.layers import Weight


def make_model(decoder: Decoder, config_json: Mapping[str, Any]) -> PreTrainedModel:
    """The model of a config.json over the decoder's own weights: only its norms take memory."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    family = getattr(transformers, decoder.config.architecture)
    longest = decoder.shape.max_positions
    config = family.config_class.from_dict({**config_json, "max_position_embeddings": longest})
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")  # type: ignore[no-untyped-call]
        model: PreTrainedModel = made.eval()
    model.load_state_dict(dict(_state(decoder)), assign=True)
    inner = model.model
    with decoder.device:
        inner.rotary_emb = type(inner.rotary_emb)(config)  # no checkpoint has its tables
    return model


def cache_argument(model: PreTrainedModel, cache: Cache) -> dict[str, Cache]:
    """A cache as an argument of the model's call: `cache`, or before transformers 5.24 `past_key_values`."""
    known = inspect.signature(type(model).forward).parameters
    return {"cache" if "cache" in known else "past_key_values": cache}


def _state(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """The decoder's weights by the names of a checkpoint, most of them views."""
    weights, shape = decoder.weights, decoder.shape
    queries, kv = shape.num_query_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    dtype = decoder.dtype
    yield "model.embed_tokens.weight", _dense(weights.embedding)
    yield "lm_head.weight", _dense(weights.head)
    yield "model.norm.weight", weights.norm.to(dtype)
    for number, layer in enumerate(weights.layers):
        prefix = f"model.layers.{number}."
        yield f"{prefix}input_layernorm.weight", layer.input_norm.to(dtype)
        yield f"{prefix}post_attention_layernorm.weight", layer.post_norm.to(dtype)
        for kind, whole in (("weight", _dense(layer.qkv)), ("bias", layer.qkv_bias)):
            if whole is not None:
                for name, part in zip("qkv", torch.split(whole, [queries, kv, kv]), strict=True):
                    yield f"{prefix}self_attn.{name}_proj.{kind}", part
        if layer.qk_norm is not None:
            yield f"{prefix}self_attn.q_norm.weight", layer.qk_norm[0].to(dtype)
            yield f"{prefix}self_attn.k_norm.weight", layer.qk_norm[-1].to(dtype)
        yield f"{prefix}self_attn.o_proj.weight", _dense(layer.output)
        if layer.output_bias is not None:
            yield f"{prefix}self_attn.o_proj.bias", layer.output_bias
        for name, part in zip(("gate", "up"), _dense(layer.gate_up).chunk(2), strict=True):
            yield f"{prefix}mlp.{name}_proj.weight", part
        yield f"{prefix}mlp.down_proj.weight", _dense(layer.down)


def _dense(weight: Weight) -> Tensor:
    if isinstance(weight, Tensor):
        return weight
    raise ConfigError(
        "on a CPU the weights of a .gguf file stay in its blocks, which transformers cannot share: set device to "
        "'cuda', or give a directory"
    )
