"""What commands read: lists of numbers and words, and a prompt from a text, a file, or standard input."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from ..errors import ConfigError, PromptError
from .output import format_bytes

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
        raise PromptError(f"{found} given: give one of --prompt, --prompt-file and -")
    if text is not None:
        return _decode(text.encode(errors="surrogateescape"), "--prompt")
    assert file is not None
    if file == STDIN:
        return _read_stdin()
    return read_file(file, "prompt file")
