"""`scout bench kernels`: the native kernels, checked and then timed."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from tqdm import tqdm

from ..config import parse_size
from ..errors import ConfigError
from .generate import Debug
from .output import show
from .report import plain_table

if TYPE_CHECKING:
    from ..bench.kernels.native import Timing

LEAST_SIZE = 1 << 20

Quick = Annotated[bool, typer.Option("--quick", help="Fewer shapes: seconds, not minutes.")]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Calls of each kernel; the median counts.")]
Size = Annotated[str, typer.Option("--size", help="Data that a call reads; much larger than the caches.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def _print(timings: "list[Timing]") -> None:
    columns = ("Kernel", "ISA", "DType", "D", "G", "Layout", "Threads")
    table = plain_table(*columns, "GB/s", "Of reading", "Vs SDPA", "Vs grouped", "Error")
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


def kernels(
    context: typer.Context,
    *,
    quick: Quick = False,
    rounds: Rounds = 5,
    size: Size = "256MiB",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check the native kernels against plain PyTorch, then time them.

    Every instruction set and dtype is checked. Each round times a kernel, a plain read of the same memory by the same
    threads, and PyTorch's attention over the same keys. "Vs SDPA" (vs_sdpa) is how many times as fast the kernel is as
    `scaled_dot_product_attention(..., enable_gqa=True)`; "Vs grouped" (vs_sdpa_grouped), as the same function called
    with the query heads that share a key as rows of one head. Exit code 1 if a kernel is wrong.
    """
    context.obj.debug = debug
    data = parse_size(size)
    if data < LEAST_SIZE:
        raise ConfigError(f"--size {size} is below the least value {LEAST_SIZE >> 20}MiB")
    # Inside, so that help and wrong arguments need not load PyTorch, which takes seconds.
    from ..bench.common.measure import machine_facts  # noqa: PLC0415
    from ..bench.kernels.native import measure, timed_cases, wrong  # noqa: PLC0415

    bad = list(wrong(quick=quick))
    for case, error in bad:
        print(f"scout: wrong by {error:.1e}: {case}", file=sys.stderr)
    if bad:
        raise typer.Exit(1)
    form = "{desc} {percentage:3.0f}% {bar} {n_fmt}/{total_fmt} {elapsed}"
    cases = tqdm(timed_cases(quick=quick), "Timing", bar_format=form, leave=False, disable=not sys.stderr.isatty())
    timings = [measure(case, data, rounds) for case in cases]
    if as_json:
        print(json.dumps(machine_facts() | {"cases": [timing.as_dict() for timing in timings]}), flush=True)
    else:
        _print(timings)
