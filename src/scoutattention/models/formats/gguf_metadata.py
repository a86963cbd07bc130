"""A GGUF file's metadata, read with the types that each use of an entry needs."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ModelFileError

_LARGEST = 2**63 - 1


class Metadata:
    """Entries by key: numbers, truth values, texts, and lists of them. It knows which were read.

    Every error is a ModelFileError that names the file, the key, and what was found there.
    """

    def __init__(self, path: Path, entries: Mapping[str, Any]) -> None:
        self.path = path
        self._entries = entries
        self._read: set[str] = set()

    def unread(self, prefix: str) -> dict[str, Any]:
        """The entries below a prefix that nobody has read."""
        return {key: value for key, value in self._entries.items() if key.startswith(prefix) and key not in self._read}

    def has(self, key: str) -> bool:
        """Whether the file gives an entry."""
        return key in self._entries

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number from `least` on; a list counts where all of its numbers are the same."""
        value = self._value(key, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, list):
            raise self.wrong(
                key, value, "one number for all layers: numbers that differ between layers are not supported"
            )
        if type(value) is not int or not least <= value <= _LARGEST:
            raise self.wrong(key, value, f"a whole number from {least} to 2^63 - 1")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._value(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.wrong(key, value, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """A truth value."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A text."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, value, "a text")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of texts."""
        return self._list(key, {str}, "a list of texts")

    def whole_numbers(self, key: str) -> list[int]:
        """A list of whole numbers."""
        return self._list(key, {int}, "a list of whole numbers")

    def numbers(self, key: str) -> list[float]:
        """A list of finite numbers."""
        values = self._list(key, {int, float}, "a list of numbers")
        if not all(math.isfinite(value) for value in values):
            raise self.wrong(key, values, "a list of finite numbers")
        return values

    def wrong(self, key: str, value: object, expected: str) -> ModelFileError:
        """The error for an entry that is not what its key needs."""
        found = repr(value)
        short = found if len(found) <= 60 else f"{found[:60]}..."
        return ModelFileError(f"{self.path}: {key} is {short}, where {expected} is expected")

    def _list(self, key: str, kinds: set[type], expected: str) -> list[Any]:
        value = self._value(key, None)
        if not isinstance(value, list) or not set(map(type, value)) <= kinds:
            raise self.wrong(key, value, expected)
        return value

    def _value(self, key: str, default: object) -> Any:  # noqa: ANN401  (metadata is of any type)
        self._read.add(key)
        if key in self._entries:
            return self._entries[key]
        if default is None:
            raise ModelFileError(f"{self.path} does not give {key}")
        return default
