"""What commands show and write: tables on stdout, progress on stderr, and files."""

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


def show(what: RenderableType) -> None:
    """Print a table, no wider than the terminal, if stdout is one."""
    console = Console()
    (console if console.is_terminal else Console(width=WIDE)).print(what)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr, where stderr is a terminal: call `watch(stage, done, total)`."""
    form = "{desc} {percentage:3.0f}% {bar} {n_fmt}/{total_fmt} {elapsed}"
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


def check_folder(flag: str, file: Path | None) -> None:
    """Raises ConfigError where a flag names a file, and there is no folder for it."""
    if file is not None and not file.parent.is_dir():
        raise ConfigError(f"cannot write {flag} {file}: there is no folder {file.parent}")


def check_drawing(flag: str, file: Path | None) -> None:
    """Raises ConfigError where a flag names a file, and there is no folder for it, or nothing to draw it with."""
    check_folder(flag, file)
    if file is not None and find_spec("matplotlib") is None:
        raise ConfigError(f"{flag} needs matplotlib: run pip install 'scout-attention[plot]'")


def write_file(file: Path, data: bytes) -> None:
    """Write a file. Raises ConfigError where that fails."""
    try:
        file.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
