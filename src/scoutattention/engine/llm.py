"""The public door: a model, prompts, answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack, get_args

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
    parse_size,
)
from ..errors import ConfigError, PromptError
from ..models.loader import load
from .device import find_device
from .engine import Engine
from .leader import lead
from .runner import Progress
from .scheduler import Sequence as Request
from .stats import Stats

Prompt = str | list[int]


class EngineOptions(TypedDict, total=False):
    """The fields of `EngineConfig`, with sizes also as text, for example "8GiB"."""

    device_memory: Memory | str
    host_memory: int | str | None
    max_model_len: int | None
    max_num_seqs: int
    dtype: DTypeName
    rope_scaling: RopeScaling
    kv_dtype: KVDTypeName
    device: DeviceName
    kernels: KernelsName
    graphs: bool
    workers: int | None
    torch_threads: int | None
    tensor_parallel_size: int


@dataclass(frozen=True)
class Output:
    """One answer. finish_reason is "stop" (end of sequence, or a stop string) or "length"."""

    text: str
    token_ids: list[int]
    prompt_tokens: int
    finish_reason: str
    ttft_s: float


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer; the last one has a finish_reason. `text` may be empty."""

    text: str
    token_ids: list[int]
    finish_reason: str | None


class LLM:
    """A model with its cache, its worker threads, and the processes of its other ranks.

    model: "smollm2", a directory in Hugging Face layout, a .gguf file, or a hub name.
    scout: the method.   engine_config: fields of `EngineConfig`; sizes may be text, as in device_memory="8GiB".
    Raises a ScoutError (errors.py) for anything wrong with the model or the settings.
    """

    def __init__(
        self,
        model: str,
        *,
        scout: ScoutConfig | None = None,
        cache_dir: Path | None = None,
        **engine_config: Unpack[EngineOptions],
    ) -> None:
        self.model = model
        self.scout = scout or ScoutConfig()
        self.engine_config = _engine_config(engine_config)
        self.engine: Engine
        if self.engine_config.tensor_parallel_size > 1:
            loaded, self.engine = lead(model, cache_dir, self.scout, self.engine_config)
        else:
            device, rope_scaling = find_device(self.engine_config.device), self.engine_config.rope_scaling
            loaded = load(model, self.engine_config.dtype, cache_dir, device, rope_scaling=rope_scaling)
            self.engine = Engine(loaded.decoder, self.scout, self.engine_config)
        self.tokenizer = loaded.tokenizer
        self._requests = 0

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        chat: bool | None = False,
        on_prompt: Progress | None = None,
    ) -> list[Output]:
        """Answer one prompt or many, of any lengths, as one ragged batch; answers come in the prompts' order.

        chat: wrap each text prompt as a user message of the model's chat template; None does so where there is one.
        on_prompt: told (done, total) tokens of each prompt as it is read.   Raises PromptError and CapacityError.
        """
        requests = [self._request(prompt, params or SamplingParams(), chat) for prompt in _listed(prompts)]
        self._run_all(requests, on_prompt)
        return [_output(request) for request in requests]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        chat: bool | None = False,
        on_prompt: Progress | None = None,
    ) -> Iterator[Chunk]:
        """Answer one prompt piece by piece; see `generate`."""
        request = self._request(prompt, params or SamplingParams(), chat)
        self.engine.add(request)
        sent_text = sent_ids = 0
        try:
            while self.engine.busy:
                self.engine.step(on_prompt)
                ready = request.printable()
                yield Chunk(request.text[sent_text:ready], request.output_ids[sent_ids:], request.finish_reason)
                sent_text, sent_ids = ready, len(request.output_ids)
        finally:
            self.engine.abort()

    def stats(self) -> Stats:
        """Totals since the model was loaded."""
        return self.engine.stats

    def close(self) -> None:
        """Stop the worker threads and the other ranks; the object cannot generate afterwards."""
        self.engine.close()

    def _run_all(self, requests: list[Request], on_prompt: Progress | None) -> None:
        try:
            for request in requests:
                self.engine.add(request)
            while self.engine.busy:
                self.engine.step(on_prompt)
        finally:
            self.engine.abort()

    def _request(self, prompt: Prompt, params: SamplingParams, chat: bool | None) -> Request:
        ids = self._encode(prompt, chat) if isinstance(prompt, str) else list(prompt)
        limit = self.engine.plan.max_len
        if not ids:
            raise PromptError("the prompt is empty: give at least 1 token")
        if len(ids) >= limit:
            raise PromptError(
                f"the prompt has {len(ids)} tokens, and max_model_len={limit} leaves room for {limit - 1} and an "
                "answer: shorten the prompt"
            )
        self._requests += 1
        return Request(self._requests, ids, params, min(limit, len(ids) + params.max_tokens), self.tokenizer)

    def _encode(self, text: str, chat: bool | None) -> list[int]:
        if not text:
            raise PromptError("the prompt is empty: give at least 1 character")
        if chat and not self.tokenizer.has_chat_template:
            raise ConfigError(f"{self.model} has no chat template: pass chat=False (--no-chat)")
        if chat or (chat is None and self.tokenizer.has_chat_template):
            message = self.tokenizer.chat([{"role": "user", "content": text}])
            return self.tokenizer.encode(message, add_special_tokens=False)
        return self.tokenizer.encode(text)


def _engine_config(options: EngineOptions) -> EngineConfig:
    """The engine's settings, with sizes that are text turned into bytes."""
    values: dict[str, Any] = dict(options)
    for name in ("device_memory", "host_memory"):
        if isinstance(values.get(name), str) and values[name] not in get_args(MemoryName):
            values[name] = parse_size(values[name])
    return EngineConfig(**values)


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many as a list; integers are the tokens of one prompt."""
    if isinstance(prompts, str):
        return [prompts]
    ids = [item for item in prompts if isinstance(item, int)]
    return [ids] if ids else [item for item in prompts if not isinstance(item, int)]


def _output(request: Request) -> Output:
    assert request.finish_reason is not None
    return Output(request.text, request.output_ids, len(request.prompt_ids), request.finish_reason, request.ttft_s)
