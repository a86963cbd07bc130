"""Where a prompt comes from: a text, a file, or standard input."""

import sys
from pathlib import Path

from ..errors import PromptError

STDIN = Path("-")


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

    Raises PromptError where it is unreadable, not UTF-8, or empty.
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
