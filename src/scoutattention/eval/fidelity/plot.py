"""Plots of fidelity."""

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .report import Measured, by_name

SHOWN_OF_MANY = ("literal", "all")
"""The configurations whose steps and layers are drawn where there are too many for all."""


def png(measured: list[Measured]) -> bytes:
    """The plots as one picture."""
    buffer = io.BytesIO()
    draw(measured).savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def draw(measured: list[Measured]) -> Figure:
    """The configurations, if there are several, then each text's steps and layers."""
    names = list(by_name(measured))
    texts = list(dict.fromkeys(item.text for item in measured))
    many = len(names) > 1
    figure = Figure(figsize=(15, 3.4 * len(texts) + (3.8 if many else 0)), layout="constrained")
    grid = figure.add_gridspec(len(texts) + many, 3)
    if many:
        divergence, share = figure.add_subplot(grid[0, :2]), figure.add_subplot(grid[0, 2])
        _bars(divergence, measured, "kl_mean")
        if any(item.fidelity.kl_mean > 0 for item in measured):
            divergence.set_xscale("log")
        _finish(divergence, "Divergence from full attention", x="mean KL, nats")
        _bars(share, measured, "cpu_share")
        _finish(share, "What the CPU computes", x="share of the chosen blocks")
    for line, text in enumerate(texts, start=int(many)):
        shown = [item for item in measured if item.text == text and (not many or item.variant.name in SHOWN_OF_MANY)]
        _steps(figure.add_subplot(grid[line, 0]), text, shown)
        _scouts(figure.add_subplot(grid[line, 1]), shown)
        _far(figure.add_subplot(grid[line, 2]), shown)
    return figure


def _bars(axes: Axes, measured: list[Measured], key: str) -> None:
    """One scalar of every configuration, a bar for each text."""
    names, texts = list(by_name(measured)), list(dict.fromkeys(item.text for item in measured))
    height = 0.8 / len(texts)
    for index, text in enumerate(texts):
        values = [getattr(item.fidelity, key) for item in measured if item.text == text]
        places = [row + (index - (len(texts) - 1) / 2) * height for row in range(len(names))]
        axes.barh(places, values, height, label=text)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()


def _steps(axes: Axes, text: str, shown: list[Measured]) -> None:
    for item in shown:
        axes.plot(item.fidelity.kl, label=item.variant.name)
    if any(kl > 0 for item in shown for kl in item.fidelity.kl):
        axes.set_yscale("log")
    _finish(axes, text, x="step", y="KL, nats")


def _scouts(axes: Axes, shown: list[Measured]) -> None:
    for index, item in enumerate(shown):
        layers = item.fidelity.layers
        axes.plot(_gaps(layers.cosine), f"C{index}-", label=f"{item.variant.name}: cosine")
        axes.plot(_gaps(layers.far_recall), f"C{index}.", label=f"{item.variant.name}: far recall")
    _finish(axes, "Scouts", x="layer")


def _far(axes: Axes, shown: list[Measured]) -> None:
    for index, item in enumerate(shown):
        layers = item.fidelity.layers
        axes.plot(layers.share, f"C{index}-", label=f"{item.variant.name}: share of the chosen blocks")
        axes.plot(layers.w, f"C{index}--", label=f"{item.variant.name}: weight in the merge")
    _finish(axes, "The far part", x="layer")


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _finish(axes: Axes, title: str, *, x: str, y: str = "") -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
