"""A request's settings as `SamplingParams`."""

import json
from dataclasses import replace
from typing import Any

from ...config import SamplingParams
from ..engine import Engine
from ..errors import refused
from .fields import ChatRequest, CompletionRequest

DIRECT = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("seed", "stop", "ignore_eos", "min_tokens", "logit_bias", "n", "cache_salt"),
)
"""Fields that are settings of the same name."""
JSON_OBJECT = '{"type": "object"}'
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
    elif not wanted and not request.get("echo"):
        raise refused(f"{name}=0 makes no answer: raise it, or set echo (/v1/completions) to score the prompt", name)
    elif wanted > room:
        holds = "max_model_len" if engine.capacity == engine.max_len else "what host_memory holds"
        raise refused(
            f"{name}={wanted} with a prompt of {prompt} tokens is beyond {holds}, {engine.capacity} tokens: lower "
            f"{name}, or shorten the prompt",
            name,
        )
    values: dict[str, Any] = {field: request[field] for field in DIRECT if request.get(field) is not None}  # type: ignore[literal-required]
    values |= {"max_tokens": wanted, "logprobs": _logprobs(request), "json_schema": _json_schema(request)}
    if request.get("echo"):
        values["prompt_logprobs"] = values["logprobs"]
    return replace(defaults, **values)


def _json_schema(request: ChatRequest | CompletionRequest) -> str | None:
    """The JSON schema that an answer conforms to, as text, or None. Raises ApiError where a request has none."""
    asked = request.get("response_format")
    if asked is None or asked["type"] == "text":
        return None
    if asked["type"] == "json_object":
        return JSON_OBJECT
    schema = asked.get("json_schema")
    if schema is None:
        raise refused("response_format of type json_schema has no json_schema: give one", "response_format")
    return json.dumps(schema["schema"])


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
