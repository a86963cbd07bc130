"""Plots of the decode benchmarks: numbers of engines against a size, a line for each engine."""

import io
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .decode.measure import Result as DecodeResult
from .gpu.cases import Result as GpuResult

Results = Sequence[DecodeResult | GpuResult]
CONTEXT, BATCH = ("context", "tokens of context"), ("batch", "sequences")
"""Fields to draw against, and their labels."""


class Column(NamedTuple):
    """Plots of some results, one below the other.   x: the field to draw against, and its label."""

    title: str
    results: Results
    x: tuple[str, str]


def decode_png(results: Sequence[DecodeResult]) -> bytes:
    """For each batch, tokens a second and memory against the context."""
    titles = {"tokens_per_s": "decoded tokens per second", "rss_mib": "MiB of memory after the last step"}
    return _png(_columns(results, "batch", CONTEXT), titles)


def gpu_png(results: Sequence[GpuResult]) -> bytes:
    """Tokens a second and milliseconds a step: of each engine's best batch against the context, then against batches.

    The second kind is drawn for each context.
    """
    titles = {"tokens_per_s": "decoded tokens per second", "ms_per_step": "milliseconds per step"}
    best = {(one.engine, one.context): one for one in sorted(results, key=attrgetter("tokens_per_s"))}
    kept = [result for result in results if best[result.engine, result.context] is result]
    return _png([Column("best batch", kept, CONTEXT), *_columns(results, "context", BATCH)], titles)


def _columns(results: Results, field: str, x: tuple[str, str]) -> list[Column]:
    """A column for each value of a field."""
    values = sorted({getattr(result, field) for result in results})
    return [Column(f"{field} {value:,}", [r for r in results if getattr(r, field) == value], x) for value in values]


def _png(columns: Sequence[Column], titles: dict[str, str]) -> bytes:
    """titles: of the plots of a column, by the field that each shows."""
    figure = Figure(figsize=(5.5 * len(columns), 3.75 * len(titles)), layout="constrained")
    grid = figure.subplots(len(titles), len(columns), squeeze=False, sharex="col")
    for place, (name, results, x) in enumerate(columns):
        for axes, (field, title) in zip(grid[:, place], titles.items(), strict=True):
            _draw(axes, results, x[0], field)
            axes.set_title(f"{name}: {title}", fontsize=9)
        grid[-1][place].set_xlabel(x[1])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _draw(axes: Axes, results: Results, x: str, y: str) -> None:
    """A line for each engine, in the order of its points along x."""
    for engine in dict.fromkeys(result.engine for result in results):
        shown = sorted((r for r in results if r.engine == engine), key=attrgetter(x))
        axes.plot([getattr(r, x) for r in shown], [getattr(r, y) for r in shown], "o-", label=engine)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
