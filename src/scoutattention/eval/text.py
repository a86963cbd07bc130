"""Text to measure on: what the user names, or what every Python installation carries."""

import argparse
import ast
import inspect
import pydoc
import tarfile
import typing
import zipfile
from pydoc_data.topics import topics
from typing import NamedTuple

from ..errors import PromptError
from ..models.text import Tokenizer

MODULES = (inspect, argparse, typing, tarfile, zipfile, pydoc, ast)


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


def first_tokens(tokenizer: Tokenizer, text: Text, count: int) -> list[int]:
    """The first `count` tokens of a text. Raises PromptError where it has fewer."""
    ids = tokenizer.encode(text.text)
    if len(ids) < count:
        raise PromptError(
            f"text {text.name} has {len(ids)} tokens, and {count} are needed, context, steps and one more: "
            "lower --context or --steps, or give a longer --text"
        )
    return ids[:count]
