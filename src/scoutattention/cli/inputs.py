"""What commands read: lists of numbers and words, and a prompt from a text, a file, or standard input."""

import sys
from collections.abc import Iterable
from pathlib import Path

from ..errors import ConfigError, PromptError

STDIN = Path("-")


def read_numbers(flag: str, text: str, *, least: int = 0) -> tuple[int, ...]:
    """The different numbers of a list as in 1024,2048. Raises ConfigError, naming the flag, where it is none."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"{flag}={text!r} is not a list of numbers as in 1024,2048")
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

    Raises PromptError where the file is unreadable, not UTF-8, or empty.
    """
    try:
        return _decode(file.read_bytes(), f"{name} {file}")
    except OSError as error:
        raise PromptError(f"cannot read {name} {file}: {error.strerror}") from error


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
        return _decode(sys.stdin.buffer.read(), "standard input")
    return read_file(file, "prompt file")
