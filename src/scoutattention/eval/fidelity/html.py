"""The report as one HTML file that needs no other."""

from base64 import b64encode
from collections.abc import Mapping
from html import escape
from string import Template

from .report import Measured
from .table import HEADINGS, WORDS, rows

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>Fidelity to full attention</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
img { width: 100% }
div { overflow-x: auto }
dt { font-weight: bold }
summary { margin: 1em 0; cursor: pointer }
</style>
<h1>Fidelity to full attention</h1>
<p><code>$command</code></p>
<div>$numbers</div>
<details open>
<summary>What the words mean</summary>
<dl>$words</dl>
</details>
<img alt="Plots of the numbers" src="data:image/png;base64,$picture">
<h2>Configuration</h2>
<div>$settings</div>
</html>
""")
IN_PLOTS = {
    "Scout": "The query of a later layer, predicted from an earlier layer, so that the CPU can start early.",
    "Cosine": "How close a scout is to the true query, from -1 to 1; 1 is perfect.",
    "The far part": "What the CPU attends to: chosen blocks that the device does not hold.",
    "Weight in the merge": "Part of the attention that comes from the far part.",
}
"""Words of the plots."""


def page(measured: list[Measured], picture: bytes, settings: Mapping[str, object], command: str) -> str:
    """The report.   picture: PNG.   settings: what was measured, by name.   command: what makes the same report."""
    return PAGE.substitute(
        command=escape(command),
        numbers=_table([list(HEADINGS), *rows(measured)]),
        words="".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in (WORDS | IN_PLOTS).items()),
        picture=b64encode(picture).decode(),
        settings=_table([["Setting", "Value"], *([name, str(value)] for name, value in settings.items())]),
    )


def _table(lines: list[list[str]]) -> str:
    head, *body = [[escape(cell) for cell in line] for line in lines]
    header = "".join(f"<th>{cell}</th>" for cell in head)
    return (
        f"<table><tr>{header}</tr>"
        + "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in body)
        + "</table>"
    )
