"""Prompts of requests as token ids. All of this takes time, and is for a thread of its own."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import PromptError
from ...models.text import Tokenizer
from ..engine import Engine
from ..errors import refused

CHARACTERS = 8
"""Of a token, more than in most texts."""
SLACK = 64
"""Tokens that a text may have less than its beginning has by itself."""
MARK = "mark"


def encode(engine: Engine, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """The token ids of a text.

    Raises PromptError; for a text that is much too long, after reading as much of it as shows that.
    """
    size = CHARACTERS * engine.max_len
    while size < len(text):
        tokens = len(engine.tokenizer.encode(text[:size], add_special_tokens=False))
        if tokens > engine.max_len + SLACK:
            raise PromptError(
                f"the prompt has {len(text):,} characters, the first {size:,} of which are {tokens:,} tokens, and "
                f"max_model_len={engine.max_len} leaves room for {engine.max_len - 1} and an answer: shorten the prompt"
            )
        size *= 2
    return engine.tokenizer.encode(text, add_special_tokens=add_special_tokens)


def encode_conversation(
    engine: Engine, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> tuple[list[int], str]:
    """The token ids of a conversation, in the model's chat template, and the text that they are.

    variables: of the template, beside the messages, as `tools`.
    Raises PromptError, and ApiError where the template has no such variable.
    """
    tokenizer = engine.tokenizer
    if not tokenizer.has_chat_template:
        raise refused("the model has no chat template: use /v1/completions", "messages")
    for name in variables:
        if not tokenizer.chat_template_reads(name):
            raise refused(f"the model's chat template does not read {name!r}: leave it out", name)
    if any(isinstance(message.get("content"), list) for message in messages) and not _reads_parts(tokenizer):
        messages = [_joined(message) for message in messages]
    text = tokenizer.chat([_with_arguments(message) for message in messages], variables=variables)
    return encode(engine, text, add_special_tokens=False), text


def _reads_parts(tokenizer: Tokenizer) -> bool:
    """Whether the chat template reads a content that is a list of parts as it reads a text."""
    part = [{"role": "user", "content": [{"type": "text", "text": MARK}]}]
    try:
        return tokenizer.chat(part) == tokenizer.chat([{"role": "user", "content": MARK}])
    except PromptError:
        return False


def _joined(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message with its parts as one text, in lines, if all of them are texts; the template refuses others."""
    content = message.get("content")
    if not isinstance(content, list) or not all(isinstance(part.get("text"), str) for part in content):
        return message
    if any(part.get("type") != "text" for part in content):
        return message
    return {**message, "content": "\n".join(part["text"] for part in content)}


def _with_arguments(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message whose calls of tools have their arguments as data: clients send JSON as text, and templates write it.

    Raises ApiError where the text is no JSON.
    """
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_with_data(call) for call in calls]}


def _with_data(call: object) -> object:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        data = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        raise refused("the arguments of a tool call are no JSON: send them as a JSON text", "messages") from None
    return {**call, "function": {**function, "arguments": data}}
