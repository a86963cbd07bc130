"""Hugging Face's transformers in the GPU benchmark: the same weights in its own model, with either of its caches."""

import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.utils import logging
from typing_extensions import override

from ...attention.step import StepStats
from ...engine.device import free_memory
from ...errors import CapacityError
from ...models.decoder import Decoder
from .cases import LeftOut, Result, Rival
from .decode import Bench, Case, Stepper, Taken, free, time_steps_of, to_result, tried

SPARE_LAYERS = 3
"""Layers of the cache that are on the device beside it: what one grows by is copied, and the next is fetched."""


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


def _state(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """The decoder's weights by the names of a checkpoint, most of them views."""
    weights, shape = decoder.weights, decoder.shape
    queries, kv = shape.num_query_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    dtype = weights.embedding.dtype
    yield "model.embed_tokens.weight", weights.embedding
    yield "lm_head.weight", weights.head
    yield "model.norm.weight", weights.norm.to(dtype)
    for number, layer in enumerate(weights.layers):
        prefix = f"model.layers.{number}."
        yield f"{prefix}input_layernorm.weight", layer.input_norm.to(dtype)
        yield f"{prefix}post_attention_layernorm.weight", layer.post_norm.to(dtype)
        for kind, whole in (("weight", layer.qkv), ("bias", layer.qkv_bias)):
            if whole is not None:
                for name, part in zip("qkv", torch.split(whole, [queries, kv, kv]), strict=True):
                    yield f"{prefix}self_attn.{name}_proj.{kind}", part
        if layer.qk_norm is not None:
            yield f"{prefix}self_attn.q_norm.weight", layer.qk_norm[0].to(dtype)
            yield f"{prefix}self_attn.k_norm.weight", layer.qk_norm[-1].to(dtype)
        yield f"{prefix}self_attn.o_proj.weight", layer.output
        if layer.output_bias is not None:
            yield f"{prefix}self_attn.o_proj.bias", layer.output_bias
        for name, part in zip(("gate", "up"), layer.gate_up.chunk(2), strict=True):
            yield f"{prefix}mlp.{name}_proj.weight", part
        yield f"{prefix}mlp.down_proj.weight", layer.down


def make_cache(model: PreTrainedModel, rival: Rival) -> DynamicCache:
    """The empty cache that a rival is named for."""
    return DynamicCache(config=model.config, offloading=rival.cache == "offloaded")


def check_room(bench: Bench, rival: Rival, case: Case) -> None:
    """Raises CapacityError, before any memory is taken, where the cache of a case would not fit."""
    shape, (context, batch) = bench.decoder.shape, case
    host, device = bench.workload.engine_config.host_memory, free_memory(bench.decoder.device)
    whole = shape.kv_bytes(batch * (context + bench.workload.more))
    there = min(SPARE_LAYERS, shape.num_layers) if rival.cache == "offloaded" else shape.num_layers + SPARE_LAYERS
    if rival.cache == "offloaded" and host is not None and whole > host:
        raise CapacityError(f"the cache takes {whole} bytes, and the host has {host} for it: raise --host-memory")
    needed = whole // shape.num_layers * there
    if device is not None and needed > device * 9 // 10:  # the rest is for a step's own tensors
        raise CapacityError(
            f"the cache takes {needed} bytes, and the device has {device} left: lower --batches or --contexts"
        )


def run_alone(bench: Bench, rival: Rival, case: Case) -> Iterator[Result | LeftOut]:
    """The outcome of a case."""
    free()
    outcome = tried(partial(_run, bench, rival, case))
    yield LeftOut(rival.name, *case, outcome) if isinstance(outcome, str) else outcome


@torch.inference_mode()
def _run(bench: Bench, rival: Rival, case: Case) -> Result:
    steps = TransformersSteps(bench, rival, case)
    return to_result(rival, case, *time_steps_of(steps, bench))


class TransformersSteps(Stepper):
    """Greedy decoding after a prompt of random keys and values, which is as fast as after any other."""

    def __init__(self, bench: Bench, rival: Rival, case: Case) -> None:
        context, batch = case
        shape, device = bench.decoder.shape, bench.decoder.device
        self._model = make_model(bench.decoder, bench.config_json)
        self._cache = make_cache(self._model, rival)
        self._link_bytes = shape.kv_bytes(batch * context) if rival.cache == "offloaded" else 0
        generator = torch.Generator(device).manual_seed(0)
        size = (1, shape.num_kv_heads, context, shape.head_dim)
        numbers = torch.randn(size, generator=generator, device=device).to(bench.decoder.weights.embedding.dtype)
        for layer in range(shape.num_layers):
            every = numbers.expand(batch, -1, -1, -1)
            self._cache.update(every, every, layer)
        self._ids = torch.arange(batch, device=device)

    @override
    def take(self) -> Taken:
        started = time.perf_counter()
        self._ids = forward(self._model, self._cache, self._ids[:, None])
        self._ids.tolist()  # as an engine does, to know whether a sequence has ended
        return time.perf_counter() - started, StepStats(recalled_bytes=self._link_bytes)


def forward(model: PreTrainedModel, cache: DynamicCache, ids: Tensor) -> Tensor:
    """The next token of each sequence, int64 [B], after tokens [B, T] that are added to the cache."""
    out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    chosen: Tensor = out.logits[:, -1].argmax(-1)
    return chosen


@torch.inference_mode()
def read_seconds(bench: Bench, rival: Rival, tokens: list[int], times: int) -> list[float]:
    """Seconds of reading a prompt into an empty cache, each of some times."""
    model, taken = make_model(bench.decoder, bench.config_json), []
    ids = torch.tensor([tokens], device=bench.decoder.device)
    for _ in range(times):
        started = time.perf_counter()
        forward(model, make_cache(model, rival), ids).tolist()
        taken.append(time.perf_counter() - started)
    return taken
