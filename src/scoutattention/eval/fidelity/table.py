"""The numbers for people: one table for the terminal and for the HTML report."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from .report import Measured, by_name, mean, scalars, worst


class Column(NamedTuple):
    """A scalar of `Fidelity`, its heading, and how it is written."""

    key: str
    heading: str
    write: Callable[[float], str]


COLUMNS = (
    Column("kl_mean", "KL", "{:.4f}".format),
    Column("kl_p95", "KL p95", "{:.4f}".format),
    Column("delta_nll", "ΔNLL", "{:+.4f}".format),
    Column("top1_agreement", "Agree", "{:.3f}".format),
    Column("cpu_share", "CPU share", "{:.1%}".format),
    Column("recall_interval", "Recall every", "{:.1f}".format),
    Column("far_recall", "Far recall", "{:.3f}".format),
    Column("guarded", "Guarded", "{:.1%}".format),
    Column("digest_bytes_per_token", "Digest B/token", "{:,.0f}".format),
    Column("device_bytes", "Device", lambda count: f"{count / 2**20:,.1f} MiB"),
    Column("device_share", "of full", "{:.0%}".format),
    Column("ms_per_step", "ms/step", "{:.0f}".format),
)
HEADINGS = ("Text", "Configuration", *(column.heading for column in COLUMNS))


def rows(measured: list[Measured]) -> list[list[str]]:
    """Cells under `HEADINGS`: every measurement, and over several texts each configuration's mean and worst."""
    lines = [_line(item.text, item.variant.name, scalars(item.fidelity)) for item in measured]
    names = by_name(measured)
    if len(names) < len(measured):
        lines += [_line("mean", name, mean(results)) for name, results in names.items()]
        lines += [_line("worst", name, worst(results)) for name, results in names.items()]
    return lines


def _line(text: str, name: str, values: Mapping[str, float | None]) -> list[str]:
    cells = [values[column.key] for column in COLUMNS]
    return [
        text,
        name,
        *("" if cell is None else column.write(cell) for column, cell in zip(COLUMNS, cells, strict=True)),
    ]
