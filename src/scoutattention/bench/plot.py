"""Plots of the benchmarks: numbers of engines against a size, a line for each engine; and timelines."""

import io
from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..trace.picture import Picture
from .decode.measure import Result as DecodeResult
from .gpu.cases import Result as GpuResult
from .serve.results import SHARES
from .serve.results import Result as ServeResult

Results = Sequence[DecodeResult | GpuResult]
CONTEXT, BATCH = ("context", "context (tokens)"), ("batch", "batch (sequences)")
"""Fields to draw against, and their labels."""
MARKERS = "os^Dv<>PX*"
SIZES_IN_A_LINE = 6
"""Labels of an axis that fit beside each other."""


class Column(NamedTuple):
    """Plots of some results, one below the other.   x: the field to draw against, and its label."""

    title: str
    results: Results
    x: tuple[str, str]


def decode_png(results: Sequence[DecodeResult], about: str) -> bytes:
    """For each batch, tokens a second and memory against the context.   about: what all share, as model and budget."""
    titles = {"tokens_per_s": "decoded tokens per second", "rss_mib": "memory after the last step (MiB)"}
    return _png(_columns(results, "batch", CONTEXT), titles, about)


def gpu_png(results: Sequence[GpuResult], about: str) -> bytes:
    """Tokens a second and milliseconds a step: of each engine's best batch against the context, then against batches.

    The second kind is drawn for each context in which an engine has several batches.
    about: what all share, as model and budget.
    """
    titles = {"tokens_per_s": "decoded tokens per second", "ms_per_step": "time of a step (ms)"}
    best = {(one.engine, one.context): one for one in sorted(results, key=attrgetter("tokens_per_s"))}
    kept = [result for result in results if best[result.engine, result.context] is result]
    batches = [
        column
        for column in _columns(results, "context", BATCH)
        if any(count > 1 for count in Counter(one.engine for one in column.results).values())
    ]
    return _png([Column("best batch", kept, CONTEXT), *batches], titles, about)


def serve_png(results: Sequence[ServeResult], about: str) -> bytes:
    """A server's throughput and waiting times against the rate of requests.   about: what all share, as the model."""
    plots = {
        "requests per second": {"answered": "requests_per_s", "within the limits": "goodput"},
        "new tokens per second": {"answered": "tokens_per_s"},
        "time to first token (ms)": {f"{share} % of requests": f"ttft.p{share}" for share in SHARES},
        "time between tokens (ms)": {f"{share} % of tokens": f"between.p{share}" for share in SHARES},
    }
    shown = sorted(results, key=attrgetter("rate"))
    with style.context("tableau-colorblind10"):
        figure = Figure(figsize=(11, 7.5), layout="constrained")
        figure.suptitle(about)
        for axes, (title, fields) in zip(figure.subplots(2, 2).flat, plots.items(), strict=True):
            for number, (label, field) in enumerate(fields.items()):
                look = f"C{number}{MARKERS[number]}-"
                axes.plot(range(len(shown)), [attrgetter(field)(result) for result in shown], look, label=label)
            axes.set_xticks(range(len(shown)), [f"{result.rate:g}" for result in shown])
            axes.set_xlabel("requests that were sent per second")
            axes.set_ylabel(title)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            if len(fields) > 1:
                axes.legend()
        return _saved(figure)


def timeline_png(picture: Picture) -> bytes:
    """A decode step: a row for each lane, a bar for each stage, and lines for hand-overs."""
    rows = len(picture.rows)
    with style.context("tableau-colorblind10"):
        figure = Figure(figsize=(14, 1.6 + 0.42 * rows + 0.2 * len(picture.titles)), layout="constrained")
        figure.suptitle("\n".join(title[:1].upper() + title[1:] for title in picture.titles), fontsize=11)
        axes = figure.subplots()
        for name, colour in picture.legend.items():
            bars = [bar for bar in picture.bars if bar.colour == colour]
            lengths = [bar.end_ms - bar.start_ms for bar in bars]
            starts = [bar.start_ms for bar in bars]
            axes.barh([bar.row for bar in bars], lengths, 0.75, starts, color=colour, label=name, linewidth=0)
        for line in picture.lines:
            side = 0.37 if line.to_row > line.from_row else -0.37
            ends = [line.from_row + side, line.to_row - side]
            axes.plot([line.from_ms, line.to_ms], ends, color="black", linewidth=0.4, alpha=0.5)
        for layer, start_ms in picture.layers.items():
            axes.axvline(start_ms, color="#dddddd", linewidth=0.5, zorder=0)
            axes.text(start_ms, -0.6, str(layer), fontsize=6, color="#666666")
        axes.set_yticks(range(rows), picture.rows)
        axes.set_ylim(rows - 0.5, -0.9)
        axes.set_xlim(0, picture.end_ms)
        axes.set_xlabel("milliseconds since the step began; the small numbers above are layers")
        figure.legend(loc="outside lower center", ncols=10, fontsize=8)
        return _saved(figure, dpi=100)


def _saved(figure: Figure, dpi: int = 200) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _columns(results: Results, field: str, x: tuple[str, str]) -> list[Column]:
    """A column for each value of a field."""
    values = sorted({getattr(result, field) for result in results})
    return [Column(f"{field} {value:,}", [r for r in results if getattr(r, field) == value], x) for value in values]


def _png(columns: Sequence[Column], titles: dict[str, str], about: str) -> bytes:
    """titles: of the vertical axes of a column's plots, by the field that each shows."""
    engines = list(dict.fromkeys(result.engine for column in columns for result in column.results))
    with style.context("tableau-colorblind10"):
        figure = Figure(figsize=(5.5 * len(columns) + 2, 3.75 * len(titles)), layout="constrained")
        figure.suptitle(about)
        grid = figure.subplots(len(titles), len(columns), squeeze=False, sharex="col")
        for place, (name, results, x) in enumerate(columns):
            for axes, (field, title) in zip(grid[:, place], titles.items(), strict=True):
                _draw(axes, results, (x[0], field), engines)
                axes.set_title(name)
                axes.set_ylabel(title)
            grid[-1][place].set_xlabel(x[1])
        lines = {line.get_label(): line for axes in grid.flat for line in axes.lines}
        figure.legend(lines.values(), lines.keys(), loc="outside right upper")
        return _saved(figure)


def _draw(axes: Axes, results: Results, fields: tuple[str, str], engines: Sequence[str]) -> None:
    """A line for each engine, in the order of its points along x; an engine looks the same in all plots."""
    x, y = fields
    for number, engine in enumerate(engines):
        shown = sorted((r for r in results if r.engine == engine), key=attrgetter(x))
        if not shown:
            continue
        look = f"C{number % 10}{MARKERS[number % len(MARKERS)]}-"
        axes.plot([getattr(r, x) for r in shown], [getattr(r, y) for r in shown], look, label=engine)
    sizes = sorted({getattr(result, x) for result in results})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=45 if len(sizes) > SIZES_IN_A_LINE else 0)
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
