"""A plot of the GPU benchmark."""

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .gpu_plan import Result


def png(results: list[Result]) -> bytes:
    """For each context, tokens a second and the CPU's time against the batch, a line for each engine."""
    contexts = sorted({result.context for result in results})
    figure = Figure(figsize=(5 * len(contexts), 7.5), layout="constrained")
    grid = figure.subplots(2, len(contexts), squeeze=False, sharex=True)
    for column, context in enumerate(contexts):
        shown = [result for result in results if result.context == context]
        _lines(grid[0][column], shown, "tokens_per_s", f"{context:,} tokens of context: decoded tokens a second")
        _lines(grid[1][column], shown, "ms_per_step", "milliseconds a step")
        grid[1][column].set_xlabel("sequences")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _lines(axes: Axes, results: list[Result], key: str, title: str) -> None:
    for engine in dict.fromkeys(result.engine for result in results):
        points = [(result.batch, getattr(result, key)) for result in results if result.engine == engine]
        axes.plot(*zip(*points, strict=True), "o-", label=engine)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
