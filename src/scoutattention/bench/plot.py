"""Plots of the decode benchmarks: numbers of engines against a size, a line for each engine."""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from .decode.measure import Result as DecodeResult
from .gpu.cases import Result as GpuResult


def decode_png(results: Sequence[DecodeResult]) -> bytes:
    """For each batch, tokens a second and memory against the context."""
    titles = {"tokens_per_s": "decoded tokens per second", "rss_mib": "MiB of memory after the last step"}
    return _png(results, "batch", ("context", "tokens of context"), titles)


def gpu_png(results: Sequence[GpuResult]) -> bytes:
    """For each context, tokens a second and milliseconds a step against the batch."""
    titles = {"tokens_per_s": "decoded tokens per second", "ms_per_step": "milliseconds per step"}
    return _png(results, "context", ("batch", "sequences"), titles)


def _png(results: Sequence[DecodeResult | GpuResult], column: str, x: tuple[str, str], titles: dict[str, str]) -> bytes:
    """A column of plots for each value of the field `column`.

    x: the field to draw against, and its label.   titles: of the plots of a column, by the field that each shows.
    """
    values = sorted({getattr(result, column) for result in results})
    figure = Figure(figsize=(5.5 * len(values), 7.5), layout="constrained")
    grid = figure.subplots(len(titles), len(values), squeeze=False, sharex=True)
    for place, value in enumerate(values):
        for axes, (field, title) in zip(grid[:, place], titles.items(), strict=True):
            for engine in dict.fromkeys(result.engine for result in results if getattr(result, column) == value):
                shown = [r for r in results if (r.engine, getattr(r, column)) == (engine, value)]
                axes.plot([getattr(r, x[0]) for r in shown], [getattr(r, field) for r in shown], "o-", label=engine)
            axes.set_xscale("log", base=2)
            axes.set_ylim(bottom=0)
            axes.set_title(f"{column} {value:,}: {title}", fontsize=9)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)
        grid[-1][place].set_xlabel(x[1])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
