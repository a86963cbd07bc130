"""A plot of decode results."""

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .decode import Result


def png(results: list[Result]) -> bytes:
    """For each batch size, tokens a second and memory against the context's length, a line for each engine."""
    batches = sorted({result.batch for result in results})
    figure = Figure(figsize=(5.5 * len(batches), 7.5), layout="constrained")
    grid = figure.subplots(2, len(batches), squeeze=False, sharex=True)
    for column, batch in enumerate(batches):
        shown = [result for result in results if result.batch == batch]
        name = f"{batch} sequence{'s' if batch > 1 else ''}"
        _lines(grid[0][column], shown, "tokens_per_s", f"{name}: decoded tokens a second")
        _lines(grid[1][column], shown, "rss_mib", f"{name}: MiB of the process")
        grid[1][column].set_xlabel("context, tokens")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _lines(axes: Axes, results: list[Result], key: str, title: str) -> None:
    for engine in dict.fromkeys(result.engine for result in results):
        points = [(result.context, getattr(result, key)) for result in results if result.engine == engine]
        axes.plot(*zip(*points, strict=True), "o-", label=engine)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
