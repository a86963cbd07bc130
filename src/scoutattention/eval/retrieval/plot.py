"""Retrieval scores as pictures: length by depth, for full attention, the method, and their difference."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .measure import Row, heatmap

MAPS = {
    "full": ("full attention", "cividis", 0.0),
    "scout": ("scout", "cividis", 0.0),
    "difference": ("scout - full attention", "RdBu", -1.0),
}
"""Title, colours, and the score of the first colour; the last colour's is 1."""


def draw_heatmaps(rows: Sequence[Row], about: str) -> Figure:
    """Three heatmaps side by side under a title; scores in percent.   about: what they share, as model and budget."""
    depths = list(dict.fromkeys(row.depth for row in rows))
    lengths = list(dict.fromkeys(row.length for row in rows))
    size = (4 + 1.8 * len(depths), 2.0 + 0.5 * len(lengths))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(f"Expected answers that were found, in %: {about}")
    for axes, (value, (title, colors, lowest)) in zip(figure.subplots(1, len(MAPS)), MAPS.items(), strict=True):
        cells = heatmap(rows, value)
        scores = np.array([[cells[length].get(depth, np.nan) for depth in depths] for length in lengths])
        axes.imshow(scores, cmap=colors, vmin=lowest, vmax=1.0, aspect="auto", alpha=0.6)  # pale, to be written on
        axes.set_title(title)
        axes.set_xticks(range(len(depths)), ["all" if depth is None else str(depth) for depth in depths])
        axes.set_yticks(range(len(lengths)), [f"{length:,}" for length in lengths])
        axes.set(xlabel="depth of the answer (% of the text)", ylabel="prompt length (tokens)")
        _write_scores(axes, scores)
    return figure


def png(rows: Sequence[Row], about: str) -> bytes:
    """The heatmaps as a PNG file.   about: their common title."""
    buffer = io.BytesIO()
    draw_heatmaps(rows, about).savefig(buffer, dpi=200, format="png")
    return buffer.getvalue()


def _write_scores(axes: Axes, scores: np.ndarray) -> None:
    for (y, x), score in np.ndenumerate(scores):
        if not np.isnan(score):
            axes.text(x, y, f"{score * 100:.0f}", ha="center", va="center")
