"""The public door: a model, prompts, answers."""

import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, Self, TypedDict, Unpack, get_args

from ..config import (
    DeviceName,
    DTypeName,
    EngineConfig,
    KernelsName,
    KVDTypeName,
    Memory,
    MemoryName,
    RopeScaling,
    SamplingParams,
    ScoutConfig,
    WeightsName,
    parse_size,
)
from ..errors import ConfigError, ScoutError
from ..hardware.memory_error import named_memory
from ..models.calibration import default_cache_dir
from ..models.loader import load, read_config
from ..models.resolve import resolve
from .answer import Answer, Chunk
from .device import find_device
from .engine import Engine
from .leader import lead
from .plan import choose
from .prompts import Prompt, PromptReader, of_each_answer, paired
from .runner import Progress
from .scheduler import Sequence as Request
from .stats import Stats
from .thread import EngineThread


class EngineOptions(TypedDict, total=False):
    """The fields of `EngineConfig`, with sizes also as text, for example "8GiB"."""

    device_memory: Memory | str
    host_memory: int | str | None
    max_model_len: int | None
    max_num_seqs: int
    dtype: DTypeName
    rope_scaling: RopeScaling
    weights: WeightsName
    kv_dtype: KVDTypeName
    prefix_cache: bool
    prefix_cache_dir: str | None
    prefix_cache_size: int | str
    device: DeviceName
    kernels: KernelsName
    graphs: bool
    workers: int | None
    torch_threads: int | None
    tensor_parallel_size: int


@dataclass(frozen=True)
class Output:
    """One answer.

    finish_reason: "stop" (end of sequence, or a stop string), "length", or "error".   error: what failed, or None.
    logprobs: for each token, log-probabilities by token id, the token's own first; None where none were asked for.
    prompt_logprobs: the same for each token of the prompt; None for the first one, before which there is nothing.
    cached_tokens: of the prompt, that were kept of earlier prompts, and not read again.
    """

    text: str
    token_ids: list[int]
    prompt_tokens: int
    finish_reason: str
    ttft_s: float
    logprobs: list[dict[int, float]] | None = None
    error: BaseException | None = None
    cached_tokens: int = 0
    prompt_logprobs: list[dict[int, float] | None] | None = None


class LLM:
    """A model with its cache, its worker threads, and the processes of its other ranks.

    model: "smollm2", a directory in Hugging Face layout, a .gguf file, or a hub name.
    scout: the method; "auto" has the planner choose it, or full attention, for this computer (docs/planning.md).
    engine_config: fields of `EngineConfig`; sizes may be text, as in device_memory="8GiB".
    Any number of threads may use it, and streams may be read in turn: all share the engine. `with LLM(...) as llm`
    closes it at the end. Raises a ScoutError (errors.py) for anything wrong with the model or the settings.
    """

    def __init__(
        self,
        model: str,
        *,
        scout: ScoutConfig | Literal["auto"] | None = None,
        **engine_config: Unpack[EngineOptions],
    ) -> None:
        self.model = model
        self.scout, self.engine_config = _settings(model, scout, read_engine_options(engine_config))
        self.engine: Engine
        with named_memory():
            if self.engine_config.tensor_parallel_size > 1:
                loaded, self.engine = lead(model, self.scout, self.engine_config)
            else:
                settings = self.engine_config
                device, scaling = find_device(settings.device), settings.rope_scaling
                loaded = load(model, settings.dtype, device, rope_scaling=scaling, weights=settings.weights)
                self.engine = Engine(loaded.decoder, self.scout, self.engine_config)
        self.tokenizer = loaded.tokenizer
        vocab, longest = loaded.decoder.shape.vocab_size, self.engine.plan.max_len
        self._reader = PromptReader(loaded.tokenizer, vocab, longest, model)
        self._thread = EngineThread(self.engine)
        self._process = os.getpid()
        self._numbers = count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        chat: bool | None = False,
        on_prompt: Progress | None = None,
    ) -> list[Output]:
        """Answer one prompt or many, of any lengths, as one ragged batch; answers come in the prompts' order.

        prompts: texts, token ids, or conversations, which are lists of {"role", "content"} messages.
        params: for all prompts, or a list with one for each. With n above 1, a prompt has so many answers in a row.
        chat: wrap each text prompt as a user message of the model's chat template; None does so where there is one.
        on_prompt: told (done, total) tokens of each prompt that is read in this call's own steps.
        Raises PromptError, ConfigError and CapacityError before anything runs. What fails later ends one answer, whose
        `error` says so; it is raised where no answer is left.
        """
        requests = self._requests(prompts, params, chat)
        if not requests:
            return []
        answer = Answer(self._thread, requests, on_prompt, streamed=False)
        try:
            answer.wait()
        finally:
            answer.cancel()
        errors = [request.ready.error for request in requests if request.ready.error is not None]
        if errors and len(errors) == len(requests):
            raise errors[0]
        return [_output(request) for request in requests]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        chat: bool | None = False,
        on_prompt: Progress | None = None,
    ) -> Generator[Chunk, None, None]:
        """Answer one prompt piece by piece; see `generate`. A stream that is closed, or dropped, ends its request."""
        requests = self._requests(prompt, params, chat)
        if len(requests) != 1:
            raise ConfigError(f"a stream is one answer to one prompt, and here are {len(requests)}: use generate")
        return iter(Answer(self._thread, requests, on_prompt, streamed=True))

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        chat: bool | None = False,
        streamed: bool = True,
    ) -> Answer:
        """Send one prompt to the engine, and return at once; see `generate`. With n above 1 it has so many answers.

        The answers are read in `for`, or in `async for` of an event loop, or waited for.
        streamed: whether tokens should come as soon as they can. Without, prompts of others are read first.
        """
        requests = self._requests(prompt, params, chat)
        if len({id(request.prompt_ids) for request in requests}) != 1:
            raise ConfigError("submit takes one prompt: call it for each, or use generate")
        return Answer(self._thread, requests, streamed=streamed)

    def stats(self) -> Stats:
        """Totals since the model was loaded."""
        return self.engine.stats

    def close(self) -> None:
        """Stop the worker threads and the other ranks; answers that are under way end with an error."""
        self._thread.close()

    def _requests(
        self,
        prompts: Prompt | Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        chat: bool | None,
    ) -> list[Request]:
        """What is asked for, checked; nothing has begun."""
        if os.getpid() != self._process:
            raise ScoutError(
                f"the LLM was made in process {self._process}, and this one was forked from it: make a new LLM here"
            )
        self._thread.check()
        prompt_ids = self._reader.read(prompts, chat)
        wanted = paired(params, len(prompt_ids))
        for of_prompt in wanted:
            self._reader.check(of_prompt)
        requests = [
            Request(
                next(self._numbers), ids, one, min(self.engine.plan.max_len, len(ids) + one.max_tokens), self.tokenizer
            )
            for ids, of_prompt in zip(prompt_ids, wanted, strict=True)
            for one in of_each_answer(of_prompt)
        ]
        for request in requests:
            self.engine.check(request)
        return requests


def _settings(
    model: str, scout: ScoutConfig | Literal["auto"] | None, engine_config: EngineConfig
) -> tuple[ScoutConfig, EngineConfig]:
    """The method's settings and the engine's, chosen where they are to be."""
    if scout != "auto":
        return scout or ScoutConfig(), engine_config
    config = read_config(resolve(model), engine_config.dtype, engine_config.rope_scaling)
    return choose(model, config, engine_config, default_cache_dir())


def read_engine_options(options: Mapping[str, object]) -> EngineConfig:
    """The engine's settings, with sizes that are text turned into bytes."""
    values: dict[str, Any] = dict(options)
    for name in ("device_memory", "host_memory", "prefix_cache_size"):
        if isinstance(values.get(name), str) and values[name] not in get_args(MemoryName):
            values[name] = parse_size(values[name])
    return EngineConfig(**values)


def _output(request: Request) -> Output:
    assert request.finish_reason is not None
    return Output(
        request.text,
        request.output_ids,
        len(request.prompt_ids),
        request.finish_reason,
        request.ttft_s,
        None if request.params.logprobs is None else request.logprobs.answer,
        request.ready.error,
        request.prefix.tokens,
        None if request.params.prompt_logprobs is None else request.logprobs.prompt,
    )
