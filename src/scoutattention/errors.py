"""Everything that can go wrong, as a tree.

ScoutError
├── ConfigError        a setting is out of range, or two settings contradict each other
├── PromptError        the prompt cannot be run: empty, or longer than a limit
├── ModelError
│   ├── ModelNotFoundError     no such model: not a path, not installed, not on the hub
│   ├── ModelFileError         a file of the model is missing, truncated or malformed
│   ├── UnsupportedModelError  the model is fine, but uses something this project does not run
│   └── CalibrationError       a stored calibration is malformed or another model's, or the text for one is too short
├── CapacityError      a memory pool or the machine is too small for the request
├── KernelError        a native kernel is missing, was refused, was called wrongly, or was late
├── RankError          another rank ended, or did not answer in time
└── CacheFolderError   the user's cache folder cannot be written

Every message is one sentence with the number, the limit and the knob. The command line prints it and exits with code 2.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class ScoutError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(ScoutError, ValueError):
    """A setting is out of range, or two settings contradict each other."""


class PromptError(ScoutError, ValueError):
    """The prompt cannot be run: empty, or longer than a limit."""


class ModelError(ScoutError):
    """The model cannot be used."""


class ModelNotFoundError(ModelError):
    """No such model: not a path, not installed, not on the hub."""


class ModelFileError(ModelError):
    """A file of the model is missing, truncated or malformed."""


class UnsupportedModelError(ModelError):
    """The model uses an architecture or an option that is not supported."""


class CalibrationError(ModelError):
    """A stored calibration is malformed or another model's, or the text for one is too short."""


class CapacityError(ScoutError):
    """A memory pool or the machine is too small for the request."""


class KernelError(ScoutError):
    """A native kernel is missing, was refused, was called wrongly, or was late."""


class RankError(ScoutError):
    """Another rank ended, or did not answer in time."""


class CacheFolderError(ScoutError):
    """The user's cache folder cannot be written."""


def nearest(name: str, known: Iterable[str]) -> str:
    """What a message about an unknown name adds: known names that begin with it, or the one most like it; and all.

    Upper case and punctuation do not count where a name begins.
    """
    names, asked = list(known), _letters(name)
    close = [one for one in names if asked and _letters(one).startswith(asked)]
    close = close or get_close_matches(name.lower(), names, 1)
    shown = ", ".join(map(repr, close))
    hint = f"{shown} {'is' if len(close) == 1 else 'are'} the nearest; " if close else ""
    return f"{hint}give one of {', '.join(names)}"


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))
