"""Draws docs/figures/timeline.svg: one decode step on the device, the CPU and the link, over three layers.

python docs/figures/timeline.py    needs matplotlib; the same version of it always writes the same file
"""

from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

mpl.rcParams.update({"svg.hashsalt": "scoutattention", "svg.fonttype": "path", "font.size": 9})

LAYERS = ("l - 1", "l", "l + 1", "l + 2")  # the last is only named
WIDTH = 12.0  # of a layer, in units without a meaning: the picture shows an order, not a measurement
DEVICE, CPU, LINK = 4.55, 2.15, 0.3  # lower edges of the lanes
HEIGHT = 1.0
PARTS = (  # name, width, colour: what the device does in a layer, in this order
    ("q, k, v", 1.5, "#dde3ea"),
    ("true\nchoice", 1.5, "#f6d9a8"),
    ("scout,\nchoose\nfor {next}", 1.9, "#f2b35d"),
    ("near\nattention", 2.4, "#9cc4e4"),
    ("correct,\nguard,\nmerge", 1.9, "#5b9bcf"),
    ("output,\nMLP", 2.8, "#dde3ea"),
)
FAR, COPY, INK, FAINT = "#8cc7a1", "#d7b5d8", "#222222", "#8a8f98"


def start_of(part: int, layer: int) -> float:
    """Where a part of a layer begins."""
    return layer * WIDTH + sum(width for _, width, _ in PARTS[:part])


def box(ax: Axes, corner: tuple[float, float], width: float, text: str, colour: str, **style: object) -> None:
    """A named span of a lane."""
    x, y = corner
    ax.add_patch(Rectangle(corner, width, HEIGHT, facecolor=colour, edgecolor="white", linewidth=1.2, **style))
    ax.text(x + width / 2, y + HEIGHT / 2, text, ha="center", va="center", color=INK, fontsize=8, linespacing=1.05)


def arrow(ax: Axes, x: float, start: float, end: float) -> None:
    """What goes from one lane to another."""
    style = {"arrowstyle": "-|>", "mutation_scale": 11, "color": INK, "linewidth": 1.1, "zorder": 4}
    ax.add_patch(FancyArrowPatch((x, start), (x, end), **style))


def note(ax: Axes, x: float, y: float, text: str, side: str = "left") -> None:
    """A few words beside a lane."""
    back = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    ax.text(x, y, text, ha=side, va="center", fontsize=8, color=INK, linespacing=1.15, bbox=back)


def draw_device(ax: Axes) -> None:
    """The device's stream: the same parts in every layer."""
    for layer, name in enumerate(LAYERS[:-1]):
        for part, (text, width, colour) in enumerate(PARTS):
            box(ax, (start_of(part, layer), DEVICE), width, text.format(next=LAYERS[layer + 1]), colour)
        middle = (layer + 0.5) * WIDTH
        ax.text(middle, DEVICE + HEIGHT + 0.33, f"layer {name}", ha="center", fontsize=10, weight="bold", color=INK)
    for edge in range(len(LAYERS)):
        ax.plot([edge * WIDTH] * 2, [LINK - 0.15, DEVICE + HEIGHT + 0.6], color=FAINT, lw=0.8, ls=(0, (2, 3)), zorder=0)


def draw_far(ax: Axes) -> None:
    """The CPU's partial of each layer: begun a layer before, and needed when the layer merges."""
    level, middle = CPU + HEIGHT + 0.3, CPU + HEIGHT + 0.95
    ends = (3.6, start_of(3, 0) + 8.2, start_of(3, 1) + 9.6)
    for layer, end in enumerate(ends):  # below the arrows that go down
        needed = start_of(4, layer) + 0.3
        ax.plot([end, end, needed], [CPU + HEIGHT, level, level], color=INK, linewidth=1.1)
        arrow(ax, needed, level, DEVICE)
        note(ax, needed + 0.25, middle, "partial")
    box(ax, (0, CPU), ends[0], "far, layer l - 1", FAR, alpha=0.5)
    for layer in range(3):
        begin, last = start_of(3, layer), layer == len(ends) - 1
        end = len(ends) * WIDTH if last else ends[layer + 1]
        text = f"far, layer {LAYERS[layer + 1]}" if last else f"far attention, layer {LAYERS[layer + 1]}"
        box(ax, (begin, CPU), end - begin, text, FAR, alpha=0.5 if last else 1)
        ax.plot([begin, begin], [level - 0.12, level + 0.12], color="white", linewidth=6)  # the line passes below
        arrow(ax, begin, DEVICE, CPU + HEIGHT)
        note(ax, begin - 0.25, middle, "scout, pages of\nabsent blocks", "right")
    begin, needed = start_of(3, 0), start_of(4, 1) + 0.3
    span = {"arrowstyle": "<->", "color": FAINT, "lw": 1, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (needed, CPU - 0.16), (begin, CPU - 0.16), arrowprops=span)
    note(ax, (begin + needed) / 2, CPU - 0.4, "time that the CPU has: one layer (lookahead 1)", "center")


def draw_copies(ax: Axes) -> None:
    """Recalled blocks on their way to slots, beside the layers."""
    box(ax, (0, LINK), 17.5, "recalled blocks for the next quarter of the layers", COPY)
    text = "decided after the step before; each quarter of the layers\nwaits for its own copies only"
    note(ax, 18.0, LINK + HEIGHT / 2, text)


def main() -> None:
    """Draw and write the file."""
    figure, ax = plt.subplots(figsize=(11, 4.3))
    draw_device(ax)
    draw_far(ax)
    draw_copies(ax)
    lanes = ((DEVICE, "device stream"), (CPU, "CPU workers"), (LINK, "copies:\npages to slots"))
    for y, name in lanes:
        ax.text(-0.5, y + HEIGHT / 2, name, ha="right", va="center", fontsize=9.5, weight="bold", color=INK)
    ax.annotate("", (3 * WIDTH, -0.05), (0, -0.05), arrowprops={"arrowstyle": "-|>", "color": FAINT, "lw": 1})
    ax.text(3 * WIDTH, -0.32, "time, not to scale", ha="right", fontsize=8, color=FAINT)
    ax.set_xlim(-5.2, 3 * WIDTH + 0.4)
    ax.set_ylim(-0.6, DEVICE + HEIGHT + 0.9)
    ax.axis("off")
    figure.subplots_adjust(0.005, 0.01, 0.995, 0.99)
    target = Path(__file__).with_name("timeline.svg")
    figure.savefig(target, facecolor="white", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
