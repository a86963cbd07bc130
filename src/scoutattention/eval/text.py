"""Text to measure on: what the user names, or what every Python installation carries."""

import argparse
import ast
import inspect
import pydoc
import tarfile
import typing
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pydoc_data.topics import topics
from typing import NamedTuple

from ..errors import PromptError
from ..models.text import Tokenizer

MODULES = (inspect, argparse, typing, tarfile, zipfile, pydoc, ast)
DOCUMENTED = (
    *("asyncio.tasks", "calendar", "collections", "csv", "difflib", "doctest", "email.message", "fractions"),
    *("logging", "mailbox", "random", "shutil", "statistics", "subprocess", "threading", "unittest.mock"),
)


class Text(NamedTuple):
    """A text, and what reports call it."""

    name: str
    text: str


def prose() -> Text:
    """Python's documentation of its own language: some 100,000 tokens."""
    return Text("python-topics", "\n".join(topics[name] for name in sorted(topics)))


def code() -> Text:
    """The sources of some modules of Python's library: some 170,000 tokens."""
    return Text("python-sources", "\n".join(inspect.getsource(module) for module in MODULES))


def mixed() -> Text:
    """The ends of both in turns of 40 lines, the last turn first, so that the subject changes all the time."""
    turns = zip(_turns(prose().text), _turns(code().text), strict=False)
    return Text("python-mixed", "".join(part for pair in turns for part in pair))


def _turns(text: str, lines: int = 40) -> Iterator[str]:
    all_lines = text.splitlines(keepends=True)
    for end in range(len(all_lines), 0, -lines):
        yield "".join(all_lines[max(0, end - lines) : end])


def references() -> list[Text]:
    """What calibrations are made of where nobody names a text: documentation and sources of other modules than `code`.

    Prose and code take turns.
    """
    return [text for name in DOCUMENTED for text in (_documentation(name), _source(name))]


def _documentation(name: str) -> Text:
    module = import_module(name)
    public = (getattr(module, item) for item in module.__all__)
    described = (inspect.getdoc(item) or "" for item in (module, *(item for item in public if callable(item))))
    return Text(f"python-{name}-documentation", "\n\n".join(described))


def _source(name: str) -> Text:
    return Text(f"python-{name}-source", inspect.getsource(import_module(name)))


def first_tokens(tokenizer: Tokenizer, text: Text, count: int) -> list[int]:
    """The first `count` tokens of a text. Raises PromptError where it has fewer."""
    ids = tokenizer.encode(text.text)
    if len(ids) < count:
        raise PromptError(
            f"text {text.name} has {len(ids)} tokens, and {count} are needed, context, steps and one more: "
            "lower --context or --steps, or give a longer --text"
        )
    return ids[:count]


def tokens_of_each(tokenizer: Tokenizer, texts: list[Text], count: int) -> list[int]:
    """The first `count` tokens of every text, or all of it, one after the other."""
    return [token for text in texts for token in tokenizer.encode(text.text)[:count]]
