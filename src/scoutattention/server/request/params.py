"""A request's settings as `SamplingParams`."""

from dataclasses import replace
from typing import Any

from ...config import SamplingParams
from ..engine import Engine
from ..errors import refused
from .fields import ChatRequest, CompletionRequest

DIRECT = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("seed", "stop", "ignore_eos", "n", "cache_salt"),
)
"""Fields that are settings of the same name."""
COMPLETION_TOKENS = 16
"""Of an answer of /v1/completions that says nothing else, as at OpenAI."""


def wanted_tokens(request: ChatRequest | CompletionRequest) -> tuple[str, int | None]:
    """How many tokens a request wants at most, and the field that says so. Raises ApiError where two disagree."""
    old, new = request.get("max_tokens"), request.get("max_completion_tokens")
    if old is not None and new is not None and old != new:
        raise refused(f"max_tokens={old} and max_completion_tokens={new} disagree: give one of them", "max_tokens")
    return ("max_tokens" if new is None else "max_completion_tokens"), old if new is None else new  # type: ignore[return-value]


def params_of(
    request: ChatRequest | CompletionRequest, defaults: SamplingParams, prompt: int, engine: Engine
) -> SamplingParams:
    """The settings of a request whose prompt has so many tokens.

    defaults: what fields that are not given mean.
    Raises ConfigError for a value that cannot be, and ApiError for more tokens than there is room for.
    """
    room = engine.capacity - prompt
    name, wanted = wanted_tokens(request)
    if wanted is None:
        wanted = max(1, min(room, COMPLETION_TOKENS if "prompt" in request else room))
    elif wanted > room:
        holds = "max_model_len" if engine.capacity == engine.max_len else "what host_memory holds"
        raise refused(
            f"{name}={wanted} with a prompt of {prompt} tokens is beyond {holds}, {engine.capacity} tokens: lower "
            f"{name}, or shorten the prompt",
            name,
        )
    values: dict[str, Any] = {field: request[field] for field in DIRECT if request.get(field) is not None}  # type: ignore[literal-required]
    return replace(defaults, max_tokens=wanted, logprobs=_logprobs(request), **values)


def _logprobs(request: ChatRequest | CompletionRequest) -> int | None:
    """Likeliest tokens that are wanted at each place, or None."""
    asked = request.get("logprobs")
    if isinstance(asked, bool):
        top = request.get("top_logprobs")
        if top and not asked:
            raise refused(f"top_logprobs={top} needs logprobs to be true", "top_logprobs")
        return int(top or 0) if asked else None  # type: ignore[call-overload]
    if "messages" in request and request.get("top_logprobs"):
        raise refused(f"top_logprobs={request.get('top_logprobs')} needs logprobs to be true", "top_logprobs")
    return asked
