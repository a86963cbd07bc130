"""The device kernels on a GPU, timed against what the device's memory can do; `make test-gpu` checks them.

`python -m scoutattention.bench.gpu.kernels [--json FILE] [--quick] [--sweep]`; only this needs a GPU. Exits with 1
where a row is wrong or failed.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterable
from functools import partial as bind
from pathlib import Path

import torch

from ...errors import KernelError
from .calls import call_rows
from .kernel_cases import decode_rows, other_rows, sweep_rows
from .timing import Row, Timer, as_json, bandwidth, gpu_facts

Tell = Callable[[str], object]
"""tell(a line)"""


def line(row: Row, best: float | None) -> str:
    """A row as text; `best` is the bandwidth that its share is of."""
    words = [f"{row.kernel:<22} {row.case:<58}"]
    if row.failure is not None:
        return " ".join([*words, "FAILED", row.failure])
    if row.error is not None:
        words.append(f"{'ok' if row.right else 'WRONG':>5} {row.error:8.1e}")
    if row.seconds is not None:
        words.append(f"{row.seconds * 1e6:9.1f} us")
    if row.rate is not None:
        words.append(f"{row.rate / 1e9:7.0f} GB/s")
    if row.rate is not None and best is not None:
        words.append(f"{row.rate / best:6.1%}")
    return " ".join([*words, *(_more(name, value) for name, value in row.more.items())])


def _more(name: str, value: float) -> str:
    if name == "slowdown" or name.endswith("error"):
        return f" {name} {value:.3g}"
    return f" {name.removesuffix(' seconds')} {value * 1e6:.1f} us"


def show(rows: Iterable[Row], best: float | None = None, tell: Tell = print) -> list[Row]:
    """Report rows as they come."""
    shown = []
    for row in rows:
        shown.append(row)
        tell(line(row, best))
    return shown


def survey(timer: Timer, tell: Tell, *, quick: bool) -> tuple[list[Row], float | None]:
    """Measure the bandwidth, then time every kernel; also returns the bandwidth, bytes a second."""
    rows = show(bandwidth(timer), tell=tell)
    best = max((row.rate for row in rows if row.rate), default=None)
    tell("\ntime, and share of the higher of the two bandwidths above")
    timed = itertools.chain(decode_rows(timer, quick=quick), other_rows(timer, quick=quick), call_rows(timer))
    return rows + show(timed, best, tell), best


def write(path: Path | None, report: dict[str, object], rows: list[Row]) -> None:
    """Write the report and its rows, where a path was given."""
    if path is not None:
        path.write_text(json.dumps(report | {"rows": [as_json(row) for row in rows]}, indent=1))


def main(arguments: list[str] | None = None) -> int:
    """Time and report; returns how the process should exit."""
    parser = argparse.ArgumentParser(prog="python -m scoutattention.bench.gpu.kernels", description=__doc__)
    parser.add_argument("--json", type=Path, help="write every row to this file")
    parser.add_argument("--quick", action="store_true", help="fewer cases, fewer repeats")
    parser.add_argument("--sweep", action="store_true", help="try every tile of the partial kernel, last")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise KernelError("PyTorch finds no GPU, and this needs one: run it where torch.cuda.is_available()")
    facts = gpu_facts()
    print(*(f"{name}: {value}" for name, value in facts.items()), sep="\n")
    timer = Timer(10 if options.quick else 30)
    rows, best = survey(timer, bind(print, flush=True), quick=options.quick)
    report: dict[str, object] = {**facts, "best_bytes_per_second": best}
    write(options.json, report, rows)
    if options.sweep:
        rows += show(sweep_rows(Timer(10)), best)
        write(options.json, report, rows)
    bad = [row for row in rows if not row.right]
    print(f"\n{len(rows)} rows, {len(bad)} wrong or failed", *(line(row, best) for row in bad), sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
