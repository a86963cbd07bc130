"""`LLM`, the public entry point: takes prompts, and returns answers."""

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
from ..models.formats.model_files import ModelFiles
from ..models.loader import config_of, kept_bytes, load, open_model
from ..shape import NamedShape
from .answer import Answer, Chunk
from .device import find_device
from .engine import Engine
from .leader import lead
from .plan import choose
from .prompts import Prompt, PromptReader, of_each_answer, paired
from .runner import Progress
from .scheduler import Sequence as Request
from .stats import Stats, StepCounts
from .thread import EngineThread


class EngineOptions(TypedDict, total=False):
    """The fields of `EngineConfig`. Sizes may also be strings, for example "8GiB"."""

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
    logprobs: for each token, log-probabilities by token id, the token's own first; None unless requested.
    prompt_logprobs: the same for each token of the prompt; None for the first token, which has nothing before it.
    ttft_s: seconds from the arrival of the request to its first token.
    cached_tokens: prompt tokens that were reused from earlier prompts, and not prefilled again.
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
    """A loaded model with its KV cache and its engine. Any number of threads may use it at the same time.

    model: "smollm2", a directory in Hugging Face layout, a .gguf file, or a hub name.
    scout: the settings of the method; with "auto" the planner chooses the method or full attention for this computer.
    engine_config: fields of `EngineConfig`; sizes may be strings, as in device_memory="8GiB".
    `with LLM(...) as llm` closes it at the end. Raises a ScoutError if the model or a setting is wrong.
    """

    def __init__(
        self,
        model: str,
        *,
        scout: ScoutConfig | Literal["auto"] | None = None,
        **engine_config: Unpack[EngineOptions],
    ) -> None:
        self.model = model
        options, files = read_engine_options(engine_config), open_model(model)
        self.scout, self.engine_config = _settings(model, files, scout, options)
        self.engine: Engine
        with named_memory():
            if self.engine_config.tensor_parallel_size > 1:
                loaded, self.engine = lead(files, self.scout, self.engine_config)
            else:
                settings = self.engine_config
                device, scaling = find_device(settings.device), settings.rope_scaling
                loaded = load(files, settings.dtype, device, rope_scaling=scaling, weights=settings.weights)
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
        """Answer one prompt or many. The prompts may have different lengths; outputs are in the order of the prompts.

        prompts: strings, lists of token ids, or conversations, which are lists of {"role", "content"} messages.
        params: one for all prompts, or a list with one for each. With n above 1, each prompt has n outputs in a row.
        chat: whether to send string prompts through the chat template as user messages; None: if there is a template.
        on_prompt: called with (done, total) tokens while a prompt of this call is prefilled.
        Raises PromptError, ConfigError and CapacityError before anything runs. A later failure ends one output, and is
        its `error`. If all outputs failed, the first error is raised.
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
        """Answer one prompt piece by piece; see `generate`. Closing or dropping the stream cancels its request."""
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
        """Send one prompt to the engine, and return its `Answer` at once; see `generate`.

        Read the answer with `for` or `async for`, or call its `wait`.
        streamed: whether tokens should come as soon as possible. If not, prompts of other requests are prefilled first.
        """
        requests = self._requests(prompt, params, chat)
        if len({id(request.prompt_ids) for request in requests}) != 1:
            raise ConfigError("submit takes one prompt: call it for each, or use generate")
        return Answer(self._thread, requests, streamed=streamed)

    def stats(self) -> Stats:
        """Totals since the model was loaded."""
        return self.engine.stats

    def step_counts(self) -> StepCounts:
        """Steps since the model was loaded, by the tokens that they completed."""
        return self._thread.step_counts

    def settle(self) -> None:
        """Wait for the step that is under way, for who uses the idle `engine` after an answer."""
        self._thread.settle()

    def close(self) -> None:
        """Stop the worker threads and the other ranks; answers that are under way end with an error."""
        self._thread.close()

    def _requests(
        self,
        prompts: Prompt | Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        chat: bool | None,
    ) -> list[Request]:
        """The checked requests of a call, not yet submitted."""
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
    name: str, files: ModelFiles, scout: ScoutConfig | Literal["auto"] | None, engine_config: EngineConfig
) -> tuple[ScoutConfig, EngineConfig]:
    """The method's settings and the engine's, chosen where they are to be.   name: of the model, for messages."""
    if scout != "auto":
        return scout or ScoutConfig(), engine_config
    config = config_of(files, engine_config.dtype, engine_config.rope_scaling)
    weights = kept_bytes(files, config, engine_config.weights)
    model = NamedShape(name, config.shape, config.tie_word_embeddings, weights)
    return choose(model, engine_config, default_cache_dir())


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
