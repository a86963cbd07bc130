"""Plots of fidelity."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .report import Measured, by_name

SHOWN_OF_MANY = ("literal", "all")
"""The configurations whose steps and layers are drawn where there are too many for all."""
LEAST_KL = 1e-9
"""What is less is zero: probabilities in float32 are not exacter."""


def png(measured: list[Measured], about: str) -> bytes:
    """The plots as one picture.   about: what all of them share, as model and budget."""
    buffer = io.BytesIO()
    with style.context("tableau-colorblind10"):
        draw(measured, about).savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


def draw(measured: list[Measured], about: str) -> Figure:
    """The configurations, if there are several, then each text's steps and layers, under a title."""
    names = list(by_name(measured))
    texts = list(dict.fromkeys(item.text for item in measured))
    many = len(names) > 1
    figure = Figure(figsize=(18, 3.4 * len(texts) + (3.8 if many else 0) + 0.4), layout="constrained")
    figure.suptitle(about)
    grid = figure.add_gridspec(len(texts) + many, 3)
    if many:
        divergence, share = figure.add_subplot(grid[0, :2]), figure.add_subplot(grid[0, 2])
        _bars(divergence, measured, "kl_mean")
        divergence.set_xscale(**_scale([item.fidelity.kl_mean for item in measured]))
        _finish(divergence, "Divergence from full attention", x="mean KL divergence (nats)", y="configuration")
        _bars(share, measured, "cpu_share")
        _finish(share, "What the CPU computes", x="CPU share (of the chosen blocks)", y="configuration")
    for line, text in enumerate(texts, start=int(many)):
        shown = [item for item in measured if item.text == text and (not many or item.variant.name in SHOWN_OF_MANY)]
        _steps(figure.add_subplot(grid[line, 0]), text, shown)
        _scouts(figure.add_subplot(grid[line, 1]), shown)
        _far(figure.add_subplot(grid[line, 2]), shown)
    return figure


def _scale(values: Sequence[float]) -> dict[str, Any]:
    """The scale of an axis of divergences: logarithmic, with a linear part that holds zero, where there is one."""
    above = [value for value in values if value > LEAST_KL]
    if not above:
        return {"value": "linear"}
    return {"value": "log"} if len(above) == len(values) else {"value": "symlog", "linthresh": min(above)}


def _bars(axes: Axes, measured: list[Measured], key: str) -> None:
    """One scalar of every configuration, a bar for each text. A bar without length has its 0 beside it."""
    names, texts = list(by_name(measured)), list(dict.fromkeys(item.text for item in measured))
    height = 0.8 / len(texts)
    for index, text in enumerate(texts):
        values = [getattr(item.fidelity, key) for item in measured if item.text == text]
        places = [row + (index - (len(texts) - 1) / 2) * height for row in range(len(names))]
        bars = axes.barh(places, values, height, label=text)
        axes.bar_label(bars, ["" if value > LEAST_KL else "0" for value in values], padding=2, fontsize=7)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()


def _steps(axes: Axes, text: str, shown: list[Measured]) -> None:
    for item in shown:
        axes.plot(item.fidelity.kl, label=item.variant.name)
    axes.set_yscale(**_scale([kl for item in shown for kl in item.fidelity.kl]))
    _finish(axes, text, x="decode step", y="KL divergence (nats)")


def _scouts(axes: Axes, shown: list[Measured]) -> None:
    for index, item in enumerate(shown):
        layers = item.fidelity.layers
        axes.plot(_gaps(layers.cosine), f"C{index}-", label=f"{item.variant.name}: cosine")
        axes.plot(_gaps(layers.far_recall), f"C{index}.", label=f"{item.variant.name}: far recall")
    _finish(axes, "Scouts", x="layer", y="cosine; far recall (1 is perfect)")


def _far(axes: Axes, shown: list[Measured]) -> None:
    for index, item in enumerate(shown):
        layers = item.fidelity.layers
        axes.plot(layers.share, f"C{index}-", label=f"{item.variant.name}: share of the chosen blocks")
        axes.plot(layers.w, f"C{index}--", label=f"{item.variant.name}: weight in the merge")
    _finish(axes, "The far part", x="layer", y="share; weight (of 1)")


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _finish(axes: Axes, title: str, *, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside the curves
