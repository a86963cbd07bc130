"""The numbers for people: one table for the terminal and for the HTML report."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from .report import Measured, by_name, mean, scalars, worst


class Column(NamedTuple):
    """A scalar of `Fidelity`, its heading, how it is written, and what it is, in a sentence."""

    key: str
    heading: str
    write: Callable[[float], str]
    meaning: str


COLUMNS = (
    Column(
        "kl_mean",
        "KL",
        "{:.4f}".format,
        "Mean over the steps of the next token's Kullback-Leibler divergence from full attention, in nats; 0 is equal.",
    ),
    Column("kl_p95", "KL p95", "{:.4f}".format, "The divergence that 95 % of the steps are below."),
    Column(
        "delta_nll",
        "ΔNLL",
        "{:+.4f}".format,
        "How much less likely the text's own next token is than under full attention, in nats; negative is likelier.",
    ),
    Column(
        "top1_agreement", "Agree", "{:.3f}".format, "Part of the steps in which both find the same token the likeliest."
    ),
    Column(
        "cpu_share",
        "CPU share",
        "{:.1%}".format,
        "Part of the chosen blocks that the CPU attends to, because the device does not hold them.",
    ),
    Column(
        "recall_interval",
        "Recall every",
        "{:.1f}".format,
        "Steps between two times that a layer gets other blocks onto the device.",
    ),
    Column(
        "far_recall",
        "Far recall",
        "{:.3f}".format,
        "Part of the absent blocks that the true query would choose which the predicted query chose too; 1 is perfect.",
    ),
    Column(
        "guarded",
        "Guarded",
        "{:.1%}".format,
        "Part of the KV heads in which the true query found that the prediction had missed or spoilt something.",
    ),
    Column(
        "digest_bytes_per_token",
        "Digest B/token",
        "{:,.0f}".format,
        "Bytes of the summaries by which blocks are chosen, for each token, over all layers.",
    ),
    Column(
        "device_bytes",
        "Device",
        lambda count: f"{count / 2**20:,.1f} MiB",
        "Memory of the blocks that the device holds, and of all digests.",
    ),
    Column("device_share", "of full", "{:.0%}".format, "This memory as a part of the whole KV cache."),
    Column("ms_per_step", "ms/step", "{:.0f}".format, "Milliseconds of a decode step, without the time of measuring."),
)
WORDS = {
    "Text": "What was read; mean and worst are over all texts.",
    "Configuration": "The settings that are compared with full attention.",
    **{column.heading: column.meaning for column in COLUMNS},
}
"""What each heading means, in a sentence."""
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
