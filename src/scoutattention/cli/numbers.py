"""Flags that are lists of numbers."""

from ..errors import ConfigError


def read_numbers(flag: str, text: str) -> tuple[int, ...]:
    """The different numbers of a list as in 1024,2048. Raises ConfigError, naming the flag, where it is none."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"{flag}={text!r} is not a list of numbers as in 1024,2048")
    return tuple(dict.fromkeys(int(part) for part in parts))
