"""The picture of a decode step as one HTML file with its drawing inside; it needs no other file, and no script."""

import math
from collections.abc import Iterator
from html import escape
from string import Template

from .picture import Picture

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>A decode step</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5em; color: #222 }
h1 { font-size: 1.2em }
div { overflow-x: auto }
svg { font: 12px system-ui, sans-serif; background: #fff }
ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2em 1.2em }
i { display: inline-block; width: 1em; height: 1em; vertical-align: -.15em; margin-right: .4em }
</style>
$titles
<ul>$legend</ul>
<div>$drawing</div>
<p>A row is a lane. A bar is a stage of a layer: point at it to read which, and how long it took. The numbers above the
rows are layers, where the device begins each. Lines are hand-overs: of work to a worker, and of its result to the wait
for it.</p>
</html>
""")
LEFT, TOP, ROW, BAR = 150, 24, 40, 30
"""Pixels: for names of lanes, for numbers of layers, for a row and for its bars."""
LEAST, OF_A_LAYER = 1200, 60
"""Pixels: the least width, and the width of a layer."""
TICKS = 12


def to_html(picture: Picture) -> str:
    """The page."""
    legend = (f'<li><i style="background:{colour}"></i>{escape(name)}</li>' for name, colour in picture.legend.items())
    return PAGE.substitute(
        titles="\n".join(f"<h1>{escape(_capital(title))}</h1>" for title in picture.titles),
        legend="".join(legend),
        drawing="\n".join(_svg(picture)),
    )


def nice_step(length: float, parts: int) -> float:
    """The distance of round numbers, 1, 2 or 5 times a power of ten, that divides a length into at most so many parts.

    length: above 0.
    """
    least = length / parts
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _svg(picture: Picture) -> Iterator[str]:
    width, height = max(LEAST, OF_A_LAYER * len(picture.layers)), TOP + ROW * len(picture.rows)
    scale = width / max(picture.end_ms, 1e-9)

    def x(ms: float) -> str:
        return f"{LEFT + ms * scale:.2f}"

    yield f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + width + 20}" height="{height + 40}" role="img">'
    for layer, start_ms in picture.layers.items():
        yield f'<path d="M{x(start_ms)} {TOP - 4}V{height}" stroke="#ddd"/>'
        yield f'<text x="{x(start_ms)}" y="{TOP - 10}" fill="#666">{layer}</text>'
    for row, name in enumerate(picture.rows):
        yield f'<text x="4" y="{TOP + ROW * row + BAR / 2 + 4}">{escape(name)}</text>'
    for bar in picture.bars:
        size = f'width="{max(0.3, (bar.end_ms - bar.start_ms) * scale):.2f}" height="{BAR}"'
        place = f'x="{x(bar.start_ms)}" y="{TOP + ROW * bar.row}"'
        yield f'<rect {place} {size} fill="{bar.colour}"><title>{escape(bar.text)}</title></rect>'
    for line in picture.lines:
        down = line.to_row > line.from_row
        start = TOP + ROW * line.from_row + BAR * down
        end = TOP + ROW * line.to_row + BAR * (not down)
        path = f"M{x(line.from_ms)} {start}L{x(line.to_ms)} {end}"
        yield f'<path d="{path}" stroke="#000" stroke-opacity=".45" fill="none" pointer-events="none"/>'
    step = nice_step(picture.end_ms, TICKS)
    for tick in range(int(picture.end_ms / step) + 1):
        at = x(tick * step)
        yield f'<path d="M{at} {height}v6" stroke="#222"/><text x="{at}" y="{height + 20}">{tick * step:g} ms</text>'
    yield "</svg>"
