"""What `scout bench kernels` does: it checks every native kernel, then times them."""

import json
import sys

import typer

from ...bench.common.measure import host_facts
from ...bench.kernels import native, stored
from ..bench import KernelsFlags
from ..output import PlainTable, progress, show

COLUMNS = ("Kernel", "ISA", "DType", "D", "G", "Layout", "Threads")
WEIGHT_COLUMNS = ("Weights", "Rows", "ISA", "Threads")


def kernels(flags: KernelsFlags, size: int) -> None:
    """Check, then time calls that read `size` bytes."""
    bad: list[tuple[object, float]] = [*native.wrong(quick=flags.quick), *stored.wrong()]
    for case, error in bad:
        print(f"scout: wrong by {error:.1e}: {case}", file=sys.stderr)
    if bad:
        raise typer.Exit(1)
    cases, products = native.timed_cases(quick=flags.quick), stored.timed_cases(quick=flags.quick)
    timings, product_timings = [], []
    with progress() as watch:
        for number, attention in enumerate(cases):
            watch("Timing", number, len(cases) + len(products))
            timings.append(native.measure(attention, size, flags.rounds))
        for number, product in enumerate(products, len(cases)):
            watch("Timing", number, len(cases) + len(products))
            product_timings.append(stored.measure(product, size, flags.rounds))
    if flags.as_json:
        found = {
            "cases": [timing.as_dict() for timing in timings],
            "weights": [timing.as_dict() for timing in product_timings],
        }
        print(json.dumps(host_facts() | found), flush=True)
    else:
        _print(timings)
        _print_weights(product_timings)


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


def _print_weights(timings: list[stored.WeightTiming]) -> None:
    table = PlainTable(*WEIGHT_COLUMNS, "GB/s", "Of reading", "Error", keys=len(WEIGHT_COLUMNS))
    for timing in timings:
        case, share = timing.case, timing.gbps / timing.read_gbps
        keys = (case.kind, str(case.rows), case.isa, str(case.threads))
        table.add_row(*keys, f"{timing.gbps:.1f}", f"{share:.0%}", f"{timing.max_rel_err:.0e}")
    show(table)
