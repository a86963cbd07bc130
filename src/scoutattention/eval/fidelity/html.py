"""The report as one HTML file that needs no other."""

from base64 import b64encode
from collections.abc import Mapping
from html import escape
from string import Template

from .report import Measured
from .table import HEADINGS, rows

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
</style>
<h1>Fidelity to full attention</h1>
<p><code>$command</code></p>
<div>$numbers</div>
<img alt="Plots of the numbers" src="data:image/png;base64,$picture">
<h2>Configuration</h2>
<div>$settings</div>
</html>
""")


def page(measured: list[Measured], picture: bytes, settings: Mapping[str, object], command: str) -> str:
    """The report.   picture: PNG.   settings: what was measured, by name.   command: what makes the same report."""
    return PAGE.substitute(
        command=escape(command),
        numbers=_table([list(HEADINGS), *rows(measured)]),
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
