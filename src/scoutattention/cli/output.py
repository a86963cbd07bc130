"""What commands show and write: tables on stdout, progress on stderr, and files."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm
from typing_extensions import override

from ..errors import ConfigError
from .shell import tell

WIDE = 200
"""Characters of a line where there is no terminal, whose width nobody has to fit."""
TOLD_S = 10.0
"""Seconds between two lines of a log about the same work."""
LOADER = "scoutattention.models.loader"
"""The logger that tells how much of a model was read."""
WRAPS, NARROW = 24, 6
"""Characters: cells that are longer are texts, which may wrap; headings that are longer than cells and this wrap."""
INDENT = "  "
"""Before a command that is shown to be pasted."""
BETWEEN, EDGES = 3, 2
"""Characters between two columns of a table, and at both its sides."""


class PlainTable(Table):
    """A table without frame, with a header where headings are named.

    keys: columns that say what a row is. Where a table is too wide, each of its parts begins with them.
    """

    def __init__(self, *headings: str, keys: int = 1, title: str | None = None) -> None:
        super().__init__(*headings, box=box.SIMPLE_HEAD, show_header=any(headings), pad_edge=False, title=title)
        self.keys = keys


def show(*items: PlainTable | str, stderr: bool = False) -> None:
    """Print tables and lines, no wider than the terminal, if there is one. No number is cut, and no path broken.

    A table that is too wide is printed in parts that have some of its columns each, or else row by row.
    """
    console = Console(stderr=stderr)
    for item in items:
        if isinstance(item, str):
            _print_lines(console, item)
            continue
        columns = _columns(item)
        if not console.is_terminal:
            console = Console(stderr=stderr, width=max(WIDE, _width(columns)))
        if _width(columns) > console.width:
            columns = _columns(item, narrow=True)
        _print_lines(console, item.title, "italic")
        parts = _parts(columns, item.keys, console.width)
        for part in parts:
            console.print(_part(item, part))
        if not parts:
            _print_rows(console, columns)
        _print_lines(console, item.caption, "dim italic")


class _Column(NamedTuple):
    """A column's heading and cells.   least: characters that it needs.   most: characters with which nothing wraps."""

    heading: str
    cells: tuple[Text, ...]
    least: int
    most: int


def _columns(table: PlainTable, *, narrow: bool = False) -> list[_Column]:
    """The columns of a table.   narrow: whether long headings take several lines."""
    columns = []
    for column in table.columns:
        cells = tuple(cell if isinstance(cell, Text) else Text(str(cell)) for cell in column.cells)
        most = max((cell.cell_len for cell in cells), default=0)
        words = [len(word) for cell in cells for word in cell.plain.split()]
        heading = str(column.header)
        least = max(words, default=0) if most > WRAPS else most
        if narrow and len(heading) > max(least, NARROW):
            heading = heading.replace(" ", "\n")
        longest = max(map(len, heading.split("\n")))
        columns.append(_Column(heading, cells, max(least, longest), max(most, longest)))
    return columns


def _width(columns: Sequence[_Column]) -> int:
    """Characters of a table in which nothing wraps."""
    return sum(column.most for column in columns) + EDGES + BETWEEN * (len(columns) - 1)


def _fit(columns: Sequence[_Column], width: int) -> bool:
    return sum(column.least for column in columns) + EDGES + BETWEEN * (len(columns) - 1) <= width


def _parts(columns: Sequence[_Column], keys: int, width: int) -> list[list[_Column]]:
    """Columns that fit beside each other, and the keys before them; empty where some do not fit."""
    first, parts = list(columns[:keys]), [list(columns[:keys])]
    for column in columns[keys:]:
        if not _fit([*parts[-1], column], width) and parts[-1] != first:
            parts.append(list(first))
        parts[-1].append(column)
    return parts if all(_fit(part, width) for part in parts) else []


def _part(table: PlainTable, columns: Sequence[_Column]) -> Table:
    part = PlainTable()
    part.show_header = table.show_header
    for column in columns:
        part.add_column(column.heading, no_wrap=column.least == column.most, overflow="fold", min_width=column.least)
    for row, cells in zip(table.rows, zip(*(column.cells for column in columns), strict=True), strict=True):
        part.add_row(*cells, end_section=row.end_section)
    return part


def _print_rows(console: Console, columns: Sequence[_Column]) -> None:
    """Every row as lines, one for each cell that is not empty."""
    for cells in zip(*(column.cells for column in columns), strict=True):
        for column, cell in zip(columns, cells, strict=True):
            if cell.plain:
                _print_lines(console, f"{' '.join(column.heading.split())}: {cell.plain}".removeprefix(": "))
        console.print()


def _print_lines(console: Console, text: object, style: str = "") -> None:
    """Lines that break between words alone, so that a path can be copied. Indented, a line is a command, and whole."""
    for line in str(text or "").splitlines():
        whole = line.startswith(INDENT)
        filled = line if whole else fill(line, console.width, break_long_words=False, break_on_hyphens=False)
        console.print(Text(filled, style), soft_wrap=True)


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Keeps what libraries warn of while a bar or a spinner is up, and writes each as one line afterwards."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    for text in dict.fromkeys(str(warning.message).partition("\n")[0] for warning in caught):
        tell(f"warning: {text}")


@contextmanager
def progress(unit: str = "") -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr, where stderr is a terminal: call `watch(stage, done, total)`.

    unit: of which the bar tells the rate.
    """
    with one_line_warnings(), _bar(unit) as watch:
        yield watch


@contextmanager
def _bar(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    rate = "{rate_fmt}, " if unit else ""
    form = f"{{desc}} {{percentage:3.0f}}% {{bar}} {{n_fmt}}/{{total_fmt}} {{elapsed}}, {rate}{{remaining}} left"
    with tqdm(bar_format=form, unit=unit, leave=False, disable=not moving()) as bar:
        shown = ""

        def watch(stage: str, done: int, total: int) -> None:
            nonlocal shown
            if stage != shown:
                shown = stage
                bar.set_description(stage, refresh=False)
                bar.reset(total)
            bar.update(done - bar.n)

        yield watch


@contextmanager
def busy(text: str) -> Iterator[Callable[[str], object]]:
    """Shows on stderr, where stderr is a terminal, what is being done; yields a function that changes the text."""
    with one_line_warnings():
        if not moving():
            yield lambda text: None
            return
        console = Console(stderr=True)
        with console.status(text, spinner="dots" if console.encoding.startswith("utf") else "line") as status:
            yield status.update


@contextmanager
def loading(model: str, log: Callable[[str], object] = lambda text: None) -> Iterator[None]:
    """Shows that a model is being loaded, and how much of it was read.

    log: told as well, once in `TOLD_S` seconds, where stderr is no terminal.
    """
    loader, text = logging.getLogger(LOADER), f"Loading {model}"
    with busy(text) as show_text:
        every, say = (0.1, show_text) if moving() else (TOLD_S, log)
        watch = _Watch(every, lambda message: say(f"{text}: {message}"))
        loader.addFilter(watch)
        before = loader.level
        loader.setLevel(logging.DEBUG)
        try:
            yield
        finally:
            loader.removeFilter(watch)
            loader.setLevel(before)


class _Watch(logging.Filter):
    """Passes the messages of a logger on, at most one in so many seconds, and keeps them from the log itself."""

    def __init__(self, every: float, say: Callable[[str], object]) -> None:
        super().__init__()
        self._every = every
        self._say = say
        self._said = time.monotonic()

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._said >= self._every:
            self._said = now
            self._say(record.getMessage())
        return False


def moving() -> bool:
    """Whether what stderr shows can change in place."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


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


def check_drawing(flag: str, file: Path | None, ending: str = ".png") -> None:
    """Raises ConfigError where a flag names a file that cannot be written, or there is nothing to draw it with."""
    check_writable(flag, file)
    if file is not None and file.suffix.lower() not in ("", ending):
        raise ConfigError(
            f"{flag} writes {ending} files, and {file.name} ends with {file.suffix}: end it with {ending}"
        )
    if file is not None and find_spec("matplotlib") is None:
        raise ConfigError(f"{flag} needs matplotlib: run pip install 'scout-attention[plot]'")


def write_file(file: Path, data: bytes) -> None:
    """Write a file. Raises ConfigError where that fails."""
    try:
        file.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
