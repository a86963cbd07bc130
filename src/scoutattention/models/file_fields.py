"""Entries of a model's JSON files, taken with the type they must have."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelFileError, ScoutError, UnsupportedModelError

LONGEST = 40
"""Characters of a text that a message shows."""


class Entries:
    """An object of a JSON file. Every method raises `error` where an entry is not what it asks for.

    A missing entry has the default, or is an error without one. `null` counts as missing for the methods that may
    return None, and is an error for the others.
    """

    def __init__(self, raw: Mapping[str, Any], source: str, error: type[ScoutError] = ModelFileError) -> None:
        """`source`: what messages call the object."""
        self.raw = raw
        self.source = source
        self._error = error

    def __contains__(self, key: str) -> bool:
        return key in self.raw

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number, 1 or more."""
        value = self._required(key, default)
        if not _is_whole(value) or value < 1:
            raise self.wrong(key, "a positive whole number")
        return int(value)

    def optional_count(self, key: str, default: int | None = None) -> int | None:
        """A whole number, 1 or more, or the default."""
        return default if self.raw.get(key) is None else self.count(key)

    def number(self, key: str, default: float | None = None, *, least: float = 0.0, most: float = math.inf) -> float:
        """A finite number from `least` to `most`."""
        value = self._required(key, default)
        if not _is_number(value) or not least <= value <= most:
            raise self.wrong(key, f"a number {_range(least, most)}")
        return float(value)

    def positive(self, key: str, default: float | None = None, *, most: float = math.inf) -> float:
        """A finite number above 0, at most `most`."""
        value = self._required(key, default)
        if not _is_number(value) or not 0 < value <= most:
            raise self.wrong(key, f"a number above 0{'' if math.isinf(most) else f', at most {most:g}'}")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A finite number, 0 or more, or None."""
        return None if self.raw.get(key) is None else self.number(key)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers above 0."""
        value = self._required(key, None)
        if not isinstance(value, list) or not all(_is_number(item) and item > 0 for item in value):
            raise self.wrong(key, "a list of numbers above 0")
        return tuple(float(item) for item in value)

    def switch(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._required(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def optional_word(self, key: str) -> str | None:
        """A text, or None."""
        value = self.raw.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def optional_words(self, key: str) -> list[str] | None:
        """A list of texts, or None."""
        value = self.raw.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise self.wrong(key, "a list of texts")
        return value

    def optional_object(self, key: str) -> "Entries | None":
        """An object inside this one, or None."""
        value = self.raw.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Entries(value, f"{key} in {self.source}", self._error)

    def wrong(self, key: str, wanted: str) -> ScoutError:
        """The error about an entry with a wrong value."""
        return self._error(f"{self.source} gives {key}={shown(self.raw.get(key))}, which is not {wanted}")

    def unsupported(self, key: str, supported: str) -> ScoutError:
        """The error of an entry that is well formed, and asks for something that is not there."""
        error = UnsupportedModelError if self._error is ModelFileError else self._error
        return error(f"{self.source} gives {key}={shown(self.raw.get(key))}, which is not supported: {supported}")

    def _required(self, key: str, default: object) -> Any:  # noqa: ANN401  # JSON is of any type
        if key in self.raw:
            return self.raw[key]
        if default is None:
            raise self._error(f"{self.source} does not give {key!r}")
        return default


def refuse_pipe(path: Path) -> None:
    """Raises ModelFileError for what is there and is no file: a pipe would be waited for, and a device has no end."""
    if path.exists() and not path.is_file():
        raise ModelFileError(f"{path} is not a file")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ModelFileError if the file is missing, unreadable or holds anything else."""
    refuse_pipe(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFileError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} is not readable as JSON: {error}") from error
    except RecursionError:
        raise ModelFileError(f"{path} is not readable as JSON: it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} holds a JSON {type(value).__name__} where an object is expected")
    return value


def shown(value: object) -> str:
    """A JSON value as a message shows it: short, and without what is inside lists and objects."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """Whether it is a number that a float holds; true and false are none."""
    if isinstance(value, float):
        return math.isfinite(value)
    return _is_whole(value) and abs(value) < 1e300  # type: ignore[arg-type]


def _range(least: float, most: float) -> str:
    return f"of {least:g} or more" if math.isinf(most) else f"from {least:g} to {most:g}"
