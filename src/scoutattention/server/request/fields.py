"""The fields of requests, with their types and limits."""

from typing import Annotated, Any, Literal, Required, TypeVar

from pydantic import ConfigDict, Field, ValidatorFunctionWrapHandler, WrapValidator, with_config
from typing_extensions import TypedDict

MOST_TOP = 20
"""Likeliest tokens that a request may ask for, at each place."""
MOST_ANSWERS = 128
"""Answers to one prompt."""
LARGEST = 2**31 - 1

Count = Annotated[int, Field(ge=1, le=LARGEST)]
CountOrNone = Annotated[int, Field(ge=0, le=LARGEST)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stops = Annotated[list[str], Field(max_length=64, fail_fast=True)]
Ids = Annotated[list[int], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
Prompts = Annotated[list[Ids], Field(fail_fast=True)]

T = TypeVar("T")

strictly = with_config(ConfigDict(extra="allow", strict=True, allow_inf_nan=False))
"""A text is no number. Fields that are not named here are for `refuse_unsupported`."""


@strictly
class StreamOptions(TypedDict, total=False):
    """Where a stream tells how many tokens there were: at its end, or with each piece."""

    include_usage: bool | None
    continuous_usage_stats: bool | None


@strictly
class JsonSchema(TypedDict, total=False):
    """A JSON schema with its name, as OpenAI's clients send it."""

    name: str
    description: str | None
    schema: Required[dict[str, Any]]
    strict: bool | None


@strictly
class ResponseFormat(TypedDict, total=False):
    """What an answer is: text, any JSON object, or JSON that conforms to a schema."""

    type: Required[Literal["text", "json_object", "json_schema"]]
    json_schema: JsonSchema | None


@strictly
class Function(TypedDict, total=False):
    """What a tool is called, and what it takes, as a JSON schema."""

    name: Required[Annotated[str, Field(min_length=1)]]
    description: str | None
    parameters: dict[str, Any] | None


@strictly
class Tool(TypedDict, total=False):
    """A tool that an answer may call."""

    type: Required[Literal["function"]]
    function: Required[Function]


def _as_sent(value: T, check: ValidatorFunctionWrapHandler) -> T:
    """A value that was checked, with its keys in the order that the client gave them: the template writes them so."""
    check(value)
    return value


Tools = Annotated[list[Tool], WrapValidator(_as_sent)]


@strictly
class Sampling(TypedDict, total=False):
    """How answers are drawn, and when they end; see `SamplingParams`."""

    model: str | None
    stream: bool | None
    stream_options: StreamOptions | None
    temperature: Annotated[float, Field(ge=0)] | None
    top_p: Annotated[float, Field(gt=0, le=1)] | None
    top_k: Annotated[int, Field(ge=-1, le=LARGEST)] | None
    min_p: Annotated[float, Field(ge=0, le=1)] | None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None
    presence_penalty: Penalty | None
    frequency_penalty: Penalty | None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None
    stop: str | Stops | None
    ignore_eos: bool | None
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Bias] | None
    min_tokens: CountOrNone | None
    response_format: ResponseFormat | None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None
    max_tokens: CountOrNone | None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None


@strictly
class CompletionRequest(Sampling, total=False):
    """The body of /v1/completions.   logprobs: likeliest tokens at each place, also of the prompt if that is echoed.

    With echo, max_tokens may be 0.
    """

    prompt: str | Ids | Texts | Prompts
    add_special_tokens: bool | None
    echo: bool | None
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None


@strictly
class Message(TypedDict, total=False):
    """One message of a conversation. The chat template checks its content."""

    role: str
    content: str | list[dict[str, Any]] | None


@strictly
class ChatRequest(Sampling, total=False):
    """The body of /v1/chat/completions.   chat_template_kwargs: more variables of the template."""

    messages: list[Message]
    max_completion_tokens: Count | None
    logprobs: bool | None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None
    tools: Tools | None
    tool_choice: Literal["none", "auto"] | None
    parallel_tool_calls: bool | None
    chat_template_kwargs: dict[str, Any] | None


@strictly
class TokenizeRequest(TypedDict, total=False):
    """The body of /tokenize: a prompt, or a conversation."""

    model: str | None
    prompt: str
    messages: list[Message]
    tools: Tools | None
    chat_template_kwargs: dict[str, Any] | None
    add_special_tokens: bool | None


@strictly
class DetokenizeRequest(TypedDict, total=False):
    """The body of /detokenize."""

    model: str | None
    tokens: Ids
