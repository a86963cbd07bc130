"""`LLM`, the public entry point: takes prompts, and returns answers."""

import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import Any, Literal, Self, TypedDict, Unpack, get_args

from ..config import (
    Ablation,
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
from ..config.fields import names_of
from ..errors import ConfigError, ScoutError
from ..hardware.memory_error import named_memory
from ..models.calibration import default_cache_dir
from ..models.formats.model_files import ModelFiles
from ..models.loader import config_of, kept_bytes, load, open_model
from ..shape import NamedShape
from .answer import Answer, Chunk, Output
from .device import find_device
from .engine import Engine
from .leader import lead
from .plan import choose
from .prompts import Prompt, PromptReader, of_each_answer, paired
from .runner import Progress
from .scheduler import Sequence as Request
from .stats import Stats, StepCounts
from .thread import EngineThread

ELSEWHERE: dict[type, str] = {
    ScoutConfig: "write scout=ScoutConfig({})",
    Ablation: "write scout=ScoutConfig(ablation=Ablation({}))",
    SamplingParams: "give generate SamplingParams({})",
}
"""Settings that are not the engine's, with how each is given."""


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


class LLM:
    """A loaded model with its KV cache and its engine. Any number of threads may use it at the same time.

    model: "smollm2", a directory in Hugging Face layout, a .gguf file, or a hub name.
    scout: the settings of the method; with "auto" the planner chooses the method or full attention for this computer.
    engine_config: fields of `EngineConfig`; sizes may be strings, as in device_memory="8GiB".
    `with LLM(...) as llm` closes it at the end. Raises a ScoutError if the model or a setting is wrong.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        scout: ScoutConfig | Literal["auto"] | None = None,
        **engine_config: Unpack[EngineOptions],
    ) -> None:
        _check_kinds(model, scout)
        self.model = model = str(model)
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
        self._reader = PromptReader(loaded.tokenizer, vocab, longest, model, loaded.decoder.shape.max_positions)
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
            return answer.wait()
        finally:
            answer.cancel()

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

        Read the answer with `for` or `async for`, or call its `wait`, which returns the outputs as `generate` does.
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


def _check_kinds(model: object, scout: object) -> None:
    """Raises ConfigError where a model is no name and no path, or the method's settings are something else."""
    if not isinstance(model, str | Path):
        raise ConfigError(f"model is of type {type(model).__name__}: give a name such as 'smollm2', or a path")
    if scout not in (None, "auto") and not isinstance(scout, ScoutConfig):
        raise ConfigError(
            f"scout={scout!r} is of type {type(scout).__name__}: give a ScoutConfig, as in ScoutConfig(budget=2048), "
            'or "auto"'
        )


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
    """The engine's settings, with sizes that are text turned into bytes.

    Raises ConfigError, also for a setting of another class, with where it belongs.
    """
    places: dict[str, type] = {name: cls for cls in (*ELSEWHERE, EngineConfig) for name in names_of(cls)}
    for name, value in options.items():
        found = name if name in places else (get_close_matches(name, places, 1) or [name])[0]
        cls = places.get(found, EngineConfig)
        if cls is not EngineConfig:
            what = name if found == name else f"LLM has no setting {name!r}: {found!r} is the nearest, and"
            advice = ELSEWHERE[cls].format(f"{found}={value!r}")
            raise ConfigError(f"{what} is a setting of {cls.__name__}: {advice}")
    values: dict[str, Any] = dict(options)
    for name in ("device_memory", "host_memory", "prefix_cache_size"):
        if isinstance(values.get(name), str) and values[name] not in get_args(MemoryName):
            values[name] = parse_size(values[name])
    return EngineConfig(**values)
