"""The session of one model: what is put into the model on entry, and taken out of it on exit."""

import copy
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial, wraps
from itertools import count
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...attention.predict import source_layers
from ...config import EngineConfig, ScoutConfig, Setting
from ...config.fields import check
from ...engine.device import find_device, kernels_for, make_workers
from ...engine.stats import Stats
from ...errors import ConfigError
from ...hardware.host import usable_cores
from ...kernels.native import RowKernels
from ...runtime.workers import Workers
from ...types import Rope
from ..queries import scaled
from .cache import Limit, ScoutCache
from .linear import multiply_natively
from .memory import BatchMemory, make_memory
from .model import check_queries, read_model
from .model_pass import Pass, PromptPass, StepPass, starts_of
from .query import ModuleQueries, Probe
from .refusals import (
    CACHES,
    by_name,
    cache_parameter,
    check_generate,
    check_state,
    forward_parameters,
    parameters_of,
    refuse_continuous_batching,
)

PREFIX = "scoutattention-"
"""Of the names of attention functions; every session has its own."""
BUSY = "generate runs in this session already, and a session has one batch at a time: wait until it ends"
_NUMBERS = count(1)
_ENTERING = threading.Lock()


class _Now(threading.local):
    """What this thread's call of the model has come to.

    running: its pass.   input: of the served layer that runs, x [B, T, E].   began: when, in seconds.
    """

    running: Pass | None = None
    input: Tensor | None = None
    began = 0.0


class ScoutSession:
    """A model of transformers that decodes with ScoutAttention between `__enter__` and `__exit__`.

    On entry the served attention modules get a copy of their configuration that names the session's attention function,
    the served layers and the model get hooks, and the model gets a `generate` of its own, which checks what it is asked
    and brings the cache. On a CPU linear layers get native products of few rows. On exit all of this is taken back, and
    the memory is released. One call of `generate` runs at a time, in any thread; an exit waits for it.

    served: the model, and what of it is served.
    """

    def __init__(self, model: object, scout: ScoutConfig, engine: EngineConfig) -> None:
        """Raises ConfigError and UnsupportedModelError for what does not run; changes nothing yet."""
        self.served = read_model(model)
        source_layers(scout, self.served.shape.num_layers)
        engine = replace(engine, device="cuda" if self.served.device.type == "cuda" else "cpu")
        find_device(engine.device)
        self._settings = (scout, engine)
        self._probe = Probe()
        self._queries = ModuleQueries(self.served, self._probe, lean=self.served.lean)
        self._generating = threading.Lock()
        self._now = _Now()
        self._workers: Workers | None = None
        self._memory: BatchMemory | None = None
        self._cache: ScoutCache | None = None
        self._stats = Stats(device=engine.device)
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with _ENTERING, ExitStack() as undo:
            if any(attention.config._attn_implementation.startswith(PREFIX) for attention in self.served.attentions):
                raise ConfigError("this model is inside a `with scout(...)` already: leave that one first")
            check_state(self.served.model)
            engine = self._settings[1]
            workers = make_workers(engine, usable_cores(), on_gpu=engine.device != "cpu")
            self._workers = undo.enter_context(workers)
            undo.callback(self._forget)
            self._put_in(undo)
            if kernels_for(engine, self.served.device) == "native":
                multiply_natively(self.served.model, RowKernels(self._workers), undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._generating:
            self._undo.close()

    def stats(self) -> Stats:
        """Totals since the session was made."""
        return self._stats

    def new_cache(self, max_length: int) -> ScoutCache:
        """A cache for a loop of one's own, of sequences that become at most `max_length` tokens long.

        `generate` makes its own. The model takes it as `cache` (before transformers 5.24 as `past_key_values`): first
        with prompts, then with one token of each at a time. A session has one cache at a time; the one before is
        released. Raises ConfigError while `generate` runs, and for a length that is no whole number from 1.
        """
        check("max_length", max_length, Setting("", least=1), int)
        if self._generating.locked():
            raise ConfigError(BUSY)
        return self._make_cache(Limit(total=max_length))

    def _put_in(self, undo: ExitStack) -> None:
        """Change the model. Each change tells `undo` how it is taken back."""
        model: Any = self.served.model
        name = f"{PREFIX}{next(_NUMBERS)}"
        ALL_ATTENTION_FUNCTIONS[name] = self._attend
        undo.callback(ALL_ATTENTION_FUNCTIONS.pop, name)
        for index, (layer, attention) in enumerate(zip(self.served.layers, self.served.attentions, strict=True)):
            own = copy.copy(attention.config)
            own._attn_implementation = name
            undo.callback(setattr, attention, "config", attention.config)
            attention.config = own
            undo.callback(layer.register_forward_pre_hook(partial(self._enter, index), with_kwargs=True).remove)
        undo.callback(model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        undo.callback(model.register_forward_hook(self._end).remove)
        general = model.generation_config
        undo.callback(setattr, general, "cache_implementation", general.cache_implementation)
        general.cache_implementation = None  # checkpoints of Gemma name one
        original = model.generate

        @wraps(original)
        def generate(*args: Any, **kwargs: Any) -> object:  # noqa: ANN401  # as those of the original
            return self._generate(original, args, kwargs)

        own = vars(model)
        for method, stand_in in (("generate", generate), ("init_continuous_batching", refuse_continuous_batching)):
            undo.callback(own.update, {method: own[method]}) if method in own else undo.callback(own.pop, method)
            own[method] = stand_in

    def _generate(self, original: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        model = self.served.model
        check_queries(self.served)
        limit = check_generate(model, by_name(parameters_of(original), args, kwargs))
        others = {key: value for key, value in kwargs.items() if key not in CACHES}
        if not self._generating.acquire(blocking=False):
            raise ConfigError(BUSY)
        try:
            return original(*args, **others, **{cache_parameter(model): self._make_cache(limit)})
        finally:
            self._release()
            self._generating.release()

    def _make_cache(self, limit: Limit) -> ScoutCache:
        self._release()
        self._cache = ScoutCache(self.served.model.config, self.served.numbers, limit)
        return self._cache

    def _release(self) -> None:
        """Let go of the running sequences; their memory stays, for the next ones."""
        self._cache = self._now.running = self._now.input = None
        if self._memory is not None:
            self._memory.release()

    def _forget(self) -> None:
        """Let go of the memory too."""
        try:
            self._release()
        finally:
            self._memory = None

    def _begin(self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Before the model runs: see what it is asked, and make its pass."""
        given = by_name(forward_parameters(type(model).forward), args, kwargs)
        cache: Any = next((given[name] for name in CACHES if name in given), None)
        own = self._cache is not None and cache is self._cache
        if own and self._now.running is not None:  # the last call failed half-way, and so did its cache
            self._release()
        if not own or self._cache is None:
            raise ConfigError(
                "inside `with scout(model)` the model runs with the session's cache alone: call model.generate, or "
                f"pass {cache_parameter(model)}=session.new_cache(max_length)"
            )
        if torch.is_grad_enabled():
            raise ConfigError("scout computes no gradients: run the model inside `with torch.no_grad()`")
        self._now.began = time.perf_counter()
        ids = given.get("input_ids")
        batch, length = (given["inputs_embeds"] if ids is None else ids).shape[:2]
        seen: int = cache.get_seq_length()
        if not seen:
            starts = starts_of(given.get("attention_mask"), batch, length)
            memory = self._admit(batch, cache.limit.of(length))
            self._now.running = PromptPass(memory, starts, length)
            return
        assert self._memory is not None
        self._memory.check(batch, seen, length)
        self._now.running = StepPass(self._memory, batch)

    def _admit(self, batch: int, length: int) -> BatchMemory:
        """Memory with rows for a new batch."""
        assert self._workers is not None
        memory = self._memory
        if memory is None or not memory.holds(batch, length):
            self._memory = memory = None  # before the next one is made
            memory = make_memory(self.served, self._queries, self._settings, self._workers, (batch, length))
            self._memory = memory
        memory.admit(batch, length)
        return memory

    def _enter(self, index: int, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Before a served layer runs: keep its input, from which scouts of later layers are made."""
        self._now.input = args[0] if args else kwargs["hidden_states"]
        if index == 0 and self._now.running is not None:
            cos, sin = kwargs["position_embeddings"]
            self._now.running.begin(Rope(cos.float(), sin.float()))

    def _attend(
        self,
        module: Any,  # noqa: ANN401  # an attention module of any family
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *_: object,
        **__: object,
    ) -> tuple[Tensor, None]:
        """The attention function of the served layers, as transformers calls it."""
        probed = self._probe.answer(query)
        if probed is not None:
            return probed, None
        running, x = self._now.running, self._now.input
        if running is None or x is None:
            raise ConfigError(
                "inside `with scout(model)` parts of the model do not run by themselves: call model.generate"
            )
        layer = self.served.numbers.index(module.layer_idx)
        heads = (scaled(query, self.served.scaling), key, value)
        return running.attend(layer, heads, x), None

    def _end(self, *_: object) -> None:
        """After the model has run: end its pass, and count."""
        assert self._now.running is not None
        assert self._memory is not None
        assert self._cache is not None
        ended, self._now.running, self._now.input = self._now.running, None, None
        done = ended.finish()
        seconds, batch, stats = time.perf_counter() - self._now.began, self._memory.batch, self._stats
        if isinstance(ended, PromptPass):
            stats = replace(
                stats,
                prompt_tokens=stats.prompt_tokens + ended.num_tokens,
                prefill_s=stats.prefill_s + seconds,
                first_token_s=stats.first_token_s + batch * (time.perf_counter() - self._cache.made),
                requests=stats.requests + batch,
            )
        else:
            stats = replace(
                stats,
                decode_s=stats.decode_s + seconds,
                decode_tokens=stats.decode_tokens + batch,
                steps=stats.steps + done,
            )
        total, device = self._memory.store.cache_bytes(batch)
        if total >= stats.kv_bytes_total:
            stats = replace(stats, kv_bytes_total=total, kv_bytes_device=device)
        self._stats = replace(stats, new_tokens=stats.new_tokens + batch)
