"""What commands show and write: tables on stdout, and files, checked before minutes are spent and written after."""

from importlib.util import find_spec
from pathlib import Path

from rich.console import Console, RenderableType

from ..errors import ConfigError

WIDE = 200
"""Characters of a line where there is no terminal, whose width nobody has to fit."""


def show(what: RenderableType) -> None:
    """Print a table, no wider than the terminal, if stdout is one."""
    console = Console()
    (console if console.is_terminal else Console(width=WIDE)).print(what)


def check_folder(flag: str, file: Path) -> None:
    """Raises ConfigError where there is no folder for the file that a flag names."""
    if not file.parent.is_dir():
        raise ConfigError(f"cannot write {flag} {file}: there is no folder {file.parent}")


def check_drawing(flag: str, file: Path) -> None:
    """Raises ConfigError where there is no folder for the file that a flag names, or nothing to draw it with."""
    check_folder(flag, file)
    if find_spec("matplotlib") is None:
        raise ConfigError(f"{flag} needs matplotlib: run pip install 'scout-attention[plot]'")


def write_file(file: Path, data: bytes) -> None:
    """Raises ConfigError where it cannot be written."""
    try:
        file.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
