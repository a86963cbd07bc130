"""What a text and a conversation must be, before a tokenizer or a chat template sees them."""

from collections.abc import Mapping
from typing import Any

from ...errors import PromptError

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which messages have their reasoning; templates read the first, or the second."""


def check_text(text: str, name: str) -> None:
    """PromptError, which calls the text `name`, if it cannot be written in UTF-8: it has half a character of UTF-16."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"{name} has {text[error.start]!r} at character {error.start}, which is no text") from None


def read_conversation(messages: object, name: str) -> list[dict[str, Any]]:
    """Messages as a template gets them: plain data, without the keys that are None.

    A message is a mapping with a text "role" and a "content", which is a text, or a list of
    {"type": "text", "text": ...}. It may have more keys, of types that JSON has.
    name: what errors call the conversation.   Raises PromptError for anything else, and for no messages.
    """
    if not isinstance(messages, list | tuple):
        raise PromptError(f"{name} is a {type(messages).__name__}, where a list of messages is expected")
    if not messages:
        raise PromptError(f"{name} has no messages: give at least one")
    return [_message(message, f"message {number} of {name}") for number, message in enumerate(messages, start=1)]


def read_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """More variables of a template, as plain data. Raises PromptError where they are not what JSON has."""
    try:
        return {name: _plain(value, f"{name!r}") for name, value in variables.items()}
    except RecursionError:
        raise PromptError("a variable of the chat template is nested too deeply") from None


def _message(message: object, name: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise PromptError(f"{name} is of type {type(message).__name__}: give {{'role': ..., 'content': ...}}")
    try:
        plain = {key: value for key, value in _plain(message, name).items() if value is not None}
    except RecursionError:
        raise PromptError(f"{name} is nested too deeply") from None
    if not isinstance(plain.get("role"), str):
        raise PromptError(f"{name} has role={plain.get('role')!r}, which is no text: give one, such as 'user'")
    content = plain.get("content")
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            if kind != "text":
                raise PromptError(f"{name} has a part of type {kind!r} in its content: only 'text' is supported")
            if not isinstance(part.get("text"), str):
                said = f"{name} has a part of type 'text' in its content with text={part.get('text')!r}"
                raise PromptError(f"{said}, which is no text: give one")
    elif not isinstance(content, str) and not (content is None and "tool_calls" in plain):
        raise PromptError(f"{name} has content={content!r}, which is neither a text nor a list of texts: give one")
    reasoning = next((plain[key] for key in _REASONING if key in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: object, name: str) -> Any:  # noqa: ANN401
    """A copy made of the types that JSON has, which give a template nothing to call."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        check_text(value, name)
        return str.__str__(value)  # of a subclass too
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, list | tuple):
        return [_plain(part, name) for part in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {_plain(key, name): _plain(part, name) for key, part in value.items()}
    raise PromptError(f"{name} holds a {type(value).__name__}: only texts, numbers, lists and mappings by text can be")
