"""What commands show and write: tables on stdout, progress on stderr, and files."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from tqdm import tqdm

from ..errors import ConfigError

WIDE = 200
"""Characters of a line where there is no terminal, whose width nobody has to fit."""


def plain_table(*columns: str, title: str | None = None) -> Table:
    """A table without frame, with a header where `columns` are named."""
    table = Table(*columns, box=box.SIMPLE_HEAD, show_header=any(columns), pad_edge=False, title=title)
    table.title_justify = table.caption_justify = "left"
    return table


def show(what: RenderableType, *, stderr: bool = False) -> None:
    """Print a table, no wider than the terminal, if there is one."""
    console = Console(stderr=stderr)
    (console if console.is_terminal else Console(stderr=stderr, width=WIDE)).print(what)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr, where stderr is a terminal: call `watch(stage, done, total)`."""
    form = "{desc} {percentage:3.0f}% {bar} {n_fmt}/{total_fmt} {elapsed}, {rate_fmt}, {remaining} left"
    with tqdm(bar_format=form, leave=False, disable=not sys.stderr.isatty()) as bar:
        shown = ""

        def watch(stage: str, done: int, total: int) -> None:
            nonlocal shown
            if stage != shown:
                shown = stage
                bar.reset(total)
                bar.set_description(stage, refresh=False)
            bar.update(done - bar.n)

        yield watch


@contextmanager
def busy(text: str) -> Iterator[Callable[[str], object]]:
    """Shows on stderr, where stderr is a terminal, what is being done; yields a function that changes the text."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status(text) as status:
        yield status.update


def check_writable(flag: str, file: Path | None) -> None:
    """Raises ConfigError where a flag names a file that cannot be written."""
    if file is None:
        return
    if not file.parent.is_dir():
        raise ConfigError(f"cannot write {flag} {file}: there is no folder {file.parent}")
    if file.is_dir():
        raise ConfigError(f"cannot write {flag} {file}: it is a folder: give the name of a file in it")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ConfigError(f"cannot write {flag} {file}: permission denied: give another place")


def check_drawing(flag: str, file: Path | None) -> None:
    """Raises ConfigError where a flag names a file that cannot be written, or there is nothing to draw it with."""
    check_writable(flag, file)
    if file is not None and find_spec("matplotlib") is None:
        raise ConfigError(f"{flag} needs matplotlib: run pip install 'scout-attention[plot]'")


def write_file(file: Path, data: bytes) -> None:
    """Write a file. Raises ConfigError where that fails."""
    try:
        file.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
