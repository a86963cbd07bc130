"""Hugging Face's transformers in the GPU benchmark: the same weights in its own model, with either of its caches."""

import time
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from typing_extensions import override

from ...attention.step import StepStats
from ...engine.device import free_memory
from ...errors import CapacityError
from ..common.transformers_model import cache_argument, make_model
from .cases import LeftOut, Result, Rival
from .decode import Bench, Case, Stepper, Taken, free, time_steps_of, to_result, tried

SPARE_LAYERS = 3
"""Layers of the cache that are on the device beside it: what one grows by is copied, and the next is fetched."""


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
        numbers = torch.randn(size, generator=generator, device=device).to(bench.decoder.dtype)
        for layer in range(shape.num_layers):
            every = numbers.expand(batch, -1, -1, -1)
            self._cache.update(every, every, layer)
        self._ids = torch.arange(batch, device=device)

    @override
    def take(self) -> Taken:
        started = time.perf_counter()
        self._ids = forward(self._model, self._cache, self._ids[:, None])
        self._ids.tolist()  # as an engine does, to know whether a sequence has ended
        return Taken(time.perf_counter() - started, StepStats(recalled_bytes=self._link_bytes))


def forward(model: PreTrainedModel, cache: DynamicCache, ids: Tensor) -> Tensor:
    """The next token of each sequence, int64 [B], after tokens [B, T] that are added to the cache."""
    out = model(input_ids=ids, use_cache=True, logits_to_keep=1, **cache_argument(model, cache))
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
