"""What commands read: lists of numbers and words, and a prompt from a text, a file, or standard input."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from ..config.fields import format_bytes
from ..errors import ConfigError, PromptError
from ..models.templates.conversation import read_conversation

Message = dict[str, Any]
"""A message of a conversation: its "role" and its "content"."""
STDIN = Path("-")
MOST_BYTES = 64 << 20
"""Of a text: some 16 million tokens. What has no end, as /dev/zero, would fill the memory."""

MOST_DIGITS = 18
"""Of a number in a list; PyTorch's sizes have no more."""


def read_numbers(flag: str, text: str, *, least: int = 0) -> tuple[int, ...]:
    """The different numbers of a list as in 1024,2048. Raises ConfigError, naming the flag, where it is none."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"{flag}={text!r} is not a list of numbers as in 1024,2048")
    if max(map(len, parts)) > MOST_DIGITS:
        raise ConfigError(f"{flag}={text[:MOST_DIGITS]}... has a number of more than {MOST_DIGITS} digits")
    numbers = tuple(dict.fromkeys(int(part) for part in parts))
    if min(numbers) < least:
        raise ConfigError(f"{flag}={text!r}: {min(numbers)} is below the least value {least}")
    return numbers


def read_words(flag: str, text: str | None, known: Iterable[str]) -> tuple[str, ...]:
    """The different words of a list as in scout,dense; all of them without one. Raises ConfigError for another word."""
    if text is None:
        return tuple(known)
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for word in words:
        if word not in known:
            raise ConfigError(f"{flag}={text!r}: {word!r} is not one of {', '.join(known)}")
    return words


def _read(stream: BinaryIO, name: str) -> str:
    """All that a stream of bytes has. Raises PromptError and OSError."""
    data = stream.read(MOST_BYTES + 1) or b""  # None where nobody has written yet to what does not block
    if len(data) > MOST_BYTES:
        raise PromptError(f"{name} is larger than {format_bytes(MOST_BYTES)}, the most that is read: give a part of it")
    return _decode(data, name)


def _decode(data: bytes, name: str) -> str:
    try:
        text = data.decode("utf-8-sig")  # without the byte-order mark that some editors write
    except UnicodeDecodeError as error:
        raise PromptError(f"{name} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from error
    if not text.strip():
        raise PromptError(f"{name} is empty")
    return text


def read_file(file: Path, name: str) -> str:
    """A file's text; `name` is what errors call the file.

    Raises PromptError where the file is unreadable, too large, not UTF-8, or empty.
    """
    try:
        with file.open("rb") as stream:
            return _read(stream, f"{name} {file}")
    except OSError as error:
        raise PromptError(f"cannot read {name} {file}: {error.strerror}") from error


def _read_stdin() -> str:
    if sys.stdin is None:
        raise PromptError("standard input is closed: give a prompt with --prompt or --prompt-file")
    try:
        return _read(sys.stdin.buffer, "standard input")
    except OSError as error:
        raise PromptError(f"cannot read standard input: {error.strerror}") from error


def read_prompt(text: str | None, file: Path | None, source: str | None) -> str:
    """The one prompt that was given.

    text, file: what --prompt and --prompt-file say.   source: the argument after the model, where "-" is stdin.
    Raises PromptError where there is not exactly one prompt, or it is unreadable, not UTF-8, or empty.
    """
    if source not in (None, "-"):
        raise PromptError(f"unexpected argument {source!r}: give the prompt with --prompt, --prompt-file or -")
    if source == "-" and file is None:
        file = STDIN
    elif source == "-":
        raise PromptError("--prompt-file and - were both given: give one of --prompt, --prompt-file and -")
    if (text is None) == (file is None):
        found = "no prompt was" if text is None else "more than one prompt was"
        raise PromptError(f"{found} given: give one of --prompt, --prompt-file, --messages and -")
    if text is not None:
        return _decode(text.encode(errors="surrogateescape"), "--prompt")
    assert file is not None
    if file == STDIN:
        return _read_stdin()
    return read_file(file, "prompt file")


def read_line(prompt: str) -> str:
    """The next line of standard input, without its end; in a terminal after `prompt`, and with line editing.

    Raises EOFError at the end of the input, and PromptError where a line is too long or not UTF-8.
    """
    if sys.stdin is None:
        raise EOFError
    if sys.stdin.isatty() and sys.stdout.isatty():
        try:
            return input(prompt).encode(errors="surrogateescape").decode()
        except UnicodeDecodeError:
            raise PromptError("the line is not UTF-8") from None
    if sys.stdin.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
    data = sys.stdin.buffer.readline(MOST_BYTES + 1)
    if not data:
        raise EOFError
    if len(data) > MOST_BYTES:
        raise PromptError(f"a line is longer than {format_bytes(MOST_BYTES)}, the most that is read")
    try:
        return data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise PromptError(f"the line is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from error


def read_messages(file: Path) -> list[Message]:
    """A conversation: a JSON list of {"role", "content"}, or an object with such a list as its "messages".

    Raises PromptError where the file is unreadable, or is something else.
    """
    name = f"messages file {file}"
    text = read_file(file, "messages file")
    try:
        read = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{name} is not JSON: {error}") from error
    messages = read.get("messages") if isinstance(read, dict) else read
    if not isinstance(messages, list):
        raise PromptError(f'{name} is not a list of messages such as [{{"role": "user", "content": "Hello"}}]')
    read_conversation(messages, name)
    return messages


def with_system(system: str | None, messages: list[Message]) -> list[Message]:
    """The conversation with a system prompt before it. Raises PromptError where it has one already."""
    if system is None:
        return messages
    if messages and messages[0]["role"] == "system":
        raise PromptError("--system and --messages both give a system prompt: leave one out")
    return [{"role": "system", "content": _decode(system.encode(errors="surrogateescape"), "--system")}, *messages]
