"""Plots of benchmarks: numbers of engines against a size, a line for each engine."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure


class Measured(Protocol):
    """What is drawn: numbers, by the names of fields, of an engine."""

    @property
    def engine(self) -> str:
        """Its name."""
        ...


def png(
    results: Sequence[Measured], column: str, x: tuple[str, str], titles: Callable[[int], Mapping[str, str]]
) -> bytes:
    """A column of plots for each value of a field.

    x: the field to draw against, and what to call it.   titles: of a column's plots, by the fields that they show.
    """
    values = sorted({getattr(result, column) for result in results})
    figure = Figure(figsize=(5.5 * len(values), 7.5), layout="constrained")
    grid = figure.subplots(2, len(values), squeeze=False, sharex=True)
    for place, value in enumerate(values):
        shown = [result for result in results if getattr(result, column) == value]
        for axes, (field, title) in zip(grid[:, place], titles(value).items(), strict=True):
            _draw(axes, shown, (x[0], field), title)
        grid[1][place].set_xlabel(x[1])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _draw(axes: Axes, results: Sequence[Measured], fields: tuple[str, str], title: str) -> None:
    for engine in dict.fromkeys(result.engine for result in results):
        points = [tuple(getattr(result, field) for field in fields) for result in results if result.engine == engine]
        axes.plot(*zip(*points, strict=True), "o-", label=engine)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
