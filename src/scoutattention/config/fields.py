"""What a setting says of itself, and the checks that follow from it.

Each field of a configuration is explained once, where it is defined. `scout ... --help` and docs/settings.md print
these explanations.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

from ..errors import ConfigError, nearest

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[f"{_letter}ib"] = _UNITS[_letter] = 1024**_power
    _UNITS[f"{_letter}b"] = 1000**_power
_MOST = 1 << 63
"""Bytes that a signed 64-bit number cannot count."""


def parse_size(text: str) -> int:
    """Bytes in `text`: a number with an optional unit, as "512MiB", "1.5G" or "4096".

    "k", "m", "g", "t" and "KiB" ... "TiB" are powers of 1024; "KB" ... "TB" are powers of 1000.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _UNITS:
        raise ConfigError(f"cannot read {text!r} as a size: write a number and a unit, for example 512MiB or 8GiB")
    size = float(match[1]) * _UNITS[match[2]]
    if size >= _MOST:
        raise ConfigError(f"the size {text[:20]} is not below {_MOST >> 60} EiB, which no memory has")
    return int(size)


def format_bytes(count: float) -> str:
    """`count` bytes with a binary unit and three digits or so, as in 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def counted(count: int, noun: str) -> str:
    """`count` of something, as in 1 token or 1,024 tokens."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Setting:
    """The explanation of one field.

    help: what the setting is, in one sentence.   change: when to change it.
    none: what None means.   none_word: how the command line writes None; "" where leaving the flag out does.
    least, most: the smallest and the largest value, or None.   size: whether the value is in bytes.
    advanced: for `--help-all` alone.
    """

    help: str
    change: str = ""
    none: str = ""
    none_word: str = ""
    least: float | None = None
    most: float | None = None
    size: bool = False
    advanced: bool = False


def setting(default: object, help: str, **about: Any) -> Any:  # noqa: ANN401  # becomes a field of any type
    """A field with its default and its explanation; `about` are the other fields of `Setting`."""
    return field(default=default, metadata={"setting": Setting(help, **about)})


def setting_of(item: Field[Any]) -> Setting:
    """The explanation of a field that `setting` made."""
    found: Setting = item.metadata["setting"]
    return found


def names_of(cls: type[Any]) -> tuple[str, ...]:
    """The names of a configuration's fields."""
    return tuple(item.name for item in fields(cls))


class Checked:
    """Base of the configurations: checks every field when one is made, and refuses names that are no fields."""

    old_names: ClassVar[Mapping[str, str]] = {}
    """Names that were settings once, with what to write now."""

    def __new__(cls, *_: object, **values: object) -> Self:
        """Raises ConfigError for an old name, with the new one, and for an unknown one, with the nearest."""
        known = names_of(cls)
        for name in values:
            if name in cls.old_names:
                raise ConfigError(f"{cls.__name__} has no setting {name!r} any more: {cls.old_names[name]}")
            if name not in known:
                raise ConfigError(f"{cls.__name__} has no setting {name!r}: {nearest(name, known)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for item in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            if "setting" in item.metadata:
                check(item.name, getattr(self, item.name), setting_of(item), hints[item.name])


def check(name: str, value: object, about: Setting, hint: object) -> None:
    """Raises ConfigError where a value is of another type, a number out of range, or a word none of its type's."""
    words = _words(hint)
    if isinstance(value, str) and words and value not in words:
        raise ConfigError(f"{name}={value!r} is not one of {', '.join(words)}")
    if not _fits(value, hint):
        raise ConfigError(f"{name}={value!r} is of type {type(value).__name__}: give {_wanted(hint)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}={value} is not a finite number")
    if isinstance(value, int | float):
        if about.least is not None and not value >= about.least:
            raise ConfigError(f"{name}={value} is below the least value {about.least:g}")
        if about.most is not None and not value <= about.most:
            raise ConfigError(f"{name}={value} is above the largest value {about.most:g}")


_NAMES: dict[object, str] = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}


def _fits(value: object, hint: object) -> bool:
    """Whether a number, a truth value or a text is of a type; other values are where the type has more than these."""
    kinds = set(get_args(hint) or (hint,))
    if value is None:
        return type(None) in kinds
    if isinstance(value, str):
        return str in kinds or bool(_words(hint))
    if isinstance(value, bool | int | float):
        return type(value) in kinds or (type(value) is int and float in kinds)
    return bool(kinds - {*_NAMES, type(None)})


def _wanted(hint: object) -> str:
    """The values that a type allows, in words, for messages."""
    kinds = (hint, *get_args(hint))
    names = [name for kind, name in _NAMES.items() if kind in kinds]
    words = [f"one of {', '.join(_words(hint))}"] if _words(hint) else []
    words += ["a mapping"] if any(get_origin(kind) is Mapping for kind in kinds) else []
    return " or ".join([*names, *words, *(["None"] if type(None) in kinds else [])]) or "another"


def _words(hint: object) -> tuple[str, ...]:
    """The words that a type allows; empty where it allows any text."""
    parts = get_args(hint)
    if str in parts:
        return ()
    nested = (_words(part) if get_args(part) else (part,) for part in parts)
    return tuple(word for group in nested for word in group if isinstance(word, str))
