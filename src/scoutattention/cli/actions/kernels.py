"""What `scout bench kernels` does: it checks every native kernel, then times them."""

import json
import sys

import typer

from ...bench.common.measure import host_facts
from ...bench.kernels import native
from ..bench import KernelsFlags
from ..output import PlainTable, progress, show

COLUMNS = ("Kernel", "ISA", "DType", "D", "G", "Layout", "Threads")


def kernels(flags: KernelsFlags, size: int) -> None:
    """Check, then time calls that read `size` bytes."""
    bad = list(native.wrong(quick=flags.quick))
    for case, error in bad:
        print(f"scout: wrong by {error:.1e}: {case}", file=sys.stderr)
    if bad:
        raise typer.Exit(1)
    cases, timings = native.timed_cases(quick=flags.quick), []
    with progress() as watch:
        for number, case in enumerate(cases):
            watch("Timing", number, len(cases))
            timings.append(native.measure(case, size, flags.rounds))
    if flags.as_json:
        print(json.dumps(host_facts() | {"cases": [timing.as_dict() for timing in timings]}), flush=True)
    else:
        _print(timings)


def _print(timings: list[native.Timing]) -> None:
    table = PlainTable(*COLUMNS, "GB/s", "Of reading", "Vs SDPA", "Vs grouped", "Error", keys=len(COLUMNS))
    for timing in timings:
        case, numbers = timing.case, timing.as_dict()
        table.add_row(
            *(case.kernel, case.isa, case.dtype, str(case.head_dim), str(case.group), case.layout, str(case.threads)),
            f"{timing.gbps:.1f}",
            f"{numbers['share_of_read_bandwidth']:.0%}",
            *("" if numbers[key] is None else f"{numbers[key]:.2f}x" for key in ("vs_sdpa", "vs_sdpa_grouped")),
            f"{timing.max_rel_err:.0e}",
        )
    show(table)
