"""Texts that the user names."""

from collections.abc import Sequence
from pathlib import Path

from ...eval.text import Text
from ..inputs import read_file


def read_texts(files: Sequence[Path] | None) -> list[Text]:
    """The texts of the different files. Raises PromptError where a file is unreadable, not UTF-8, or empty."""
    return [Text(str(file), read_file(file, "text file")) for file in dict.fromkeys(files or ())]
