"""`scout bench gpu`: the device kernels, then decoding against full attention and rivals, on one GPU, offline."""

import itertools
import json
import os
import sys
import time
from dataclasses import asdict
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from ..config import EngineConfig, ScoutConfig, parse_size
from ..errors import ConfigError
from ..hardware.host import available_memory
from .generate import Debug
from .numbers import read_numbers
from .output import check_drawing, show, write_file
from .report import format_bytes, plain_table

if TYPE_CHECKING:
    from ..bench.gpu.cases import LeftOut, Measured, Plan, Result
    from ..bench.gpu.setup import Setup

Model = Annotated[str | None, typer.Argument(help="As in `scout generate`; none with dummy weights.")]
LoadFormat = Annotated[
    Literal["auto", "dummy"], typer.Option("--load-format", help="'dummy': random weights of --shape, and no model.")
]
Shape = Annotated[
    str,
    typer.Option("--shape", help="Of dummy weights: llama-3.1-8b, qwen3-8b, qwen3-14b, tiny, or a config.json's path."),
]
Replay = Annotated[
    Path | None,
    typer.Option("--replay", help="Choose what `scout eval fidelity --record` wrote; for dummy weights."),
]
Device = Annotated[Literal["cuda", "cpu"], typer.Option("--device", help="'cpu' tries the command without a GPU.")]
Contexts = Annotated[
    str | None,
    typer.Option("--contexts", help="Tokens of the prompts, the first first. Without it, 64k, 32k, 128k and 8k."),
]
Batches = Annotated[
    str | None, typer.Option("--batches", help="Sequences decoded at once, the most first. Without it, 1 to 256.")
]
Budget = Annotated[
    int | None, typer.Option("--budget", help="Tokens attended per layer and KV head. Without it, the recording's.")
]
HostMemory = Annotated[
    str | None,
    typer.Option("--host-memory", help="For the cache, as in 64GiB. Without it, three quarters of what is free."),
]
Minutes = Annotated[
    float | None,
    typer.Option("--minutes", min=0, help="Of decoding, after which no case starts. Without it, 7, and 2 if quick."),
]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer repeats, contexts, batches and steps.")]
NoKernels = Annotated[bool, typer.Option("--no-kernels", help="Do not check and time the device kernels first.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Plot = Annotated[Path | None, typer.Option("--plot", help="Draw the results into this PNG file.")]

CONTEXTS, QUICK_CONTEXTS = "65536,32768,131072,8192", "32768,8192"
BATCHES, QUICK_BATCHES = "1,2,4,6,8,12,16,24,32,48,64,96,128,192,256", "1,8"
MINUTES, QUICK_MINUTES = 7.0, 2.0
QUICK_STEPS = (8, 16)
COLUMNS = ("Engine", "Context", "Batch", "ms/step", "Tokens/s", "Device idle", "CPU hidden", "Waited", "Link", "Share")


def _row(result: "Result") -> tuple[str, ...]:
    idle = result.device_idle_share
    return (
        *(result.engine, f"{result.context:,}", str(result.batch)),
        *(f"{result.ms_per_step:.2f}", f"{result.tokens_per_s:.1f}"),
        "" if idle is None else f"{idle:.0%}",
        *(f"{result.hidden_ms:.2f} ms", f"{result.unhidden_ms:.2f} ms"),
        *(format_bytes(result.link_bytes), f"{result.share:.1%}"),
    )


def _table(measured: "Measured", setup: "Setup") -> Table:
    table = plain_table(*COLUMNS)
    table.title, table.title_justify = f"{setup.weights}; choices: {setup.choices}", "left"
    left = (
        f"left out: {case.engine}, {case.batch} x {case.context}: {case.why}" for case in measured.smallest_left_out
    )
    waiting = measured.not_started
    late = [f"{waiting} cases were not started: raise --minutes"] if waiting else []
    table.caption, table.caption_justify = "\n".join([*left, *late]), "left"
    case = attrgetter("context", "batch")
    for _, results in itertools.groupby(sorted(measured.results, key=case), key=case):
        for result in results:
            table.add_row(*_row(result))
        table.add_section()
    return table


def gpu(
    context: typer.Context,
    model: Model = None,
    *,
    load_format: LoadFormat = "auto",
    shape: Shape = "llama-3.1-8b",
    replay: Replay = None,
    device: Device = "cuda",
    contexts: Contexts = None,
    batches: Batches = None,
    budget: Budget = None,
    host_memory: HostMemory = None,
    minutes: Minutes = None,
    quick: Quick = False,
    no_kernels: NoKernels = False,
    as_json: AsJson = False,
    plot: Plot = None,
    debug: Debug = False,
) -> None:
    """Check and time the device kernels, then decode: full attention, fetching, computing when asked, and scouts.

    Needs no network. With --load-format dummy it needs no model either: weights and cache are random, and which blocks
    are chosen is replayed from a recording of a real model. Every outcome is told on stderr as it comes. Exit code 1 if
    a kernel is wrong or an engine failed.
    """
    context.obj.debug = debug
    if (model is None) == (load_format == "auto"):
        raise ConfigError("give either a model, or --load-format dummy with a --shape")
    if replay is not None and model is not None:
        raise ConfigError("--replay is for dummy weights: a model chooses for itself")
    if plot is not None:
        check_drawing("--plot", plot)
    lengths = _sizes("--contexts", contexts or (QUICK_CONTEXTS if quick else CONTEXTS))
    numbers = _sizes("--batches", batches or (QUICK_BATCHES if quick else BATCHES))
    host = available_memory() * 3 // 4 if host_memory is None else parse_size(host_memory)
    # A profile leaves CUPTI attached, which slows every later engine by 10 to 20 % (pytorch/pytorch#146604), unless
    # this is set before the first one.
    os.environ.setdefault("TEARDOWN_CUPTI", "1")
    # Inside, so that help and wrong arguments need not load PyTorch, which takes seconds.
    from ..bench.gpu.cases import Plan, rivals  # noqa: PLC0415
    from ..bench.gpu.decode import Bench  # noqa: PLC0415
    from ..bench.gpu.rounds import measure  # noqa: PLC0415

    plan = Plan(lengths, numbers, EngineConfig(host_memory=host, device=device), *(QUICK_STEPS if quick else ()))
    repeats = 0 if no_kernels else 10 if quick else 30
    setup, base, facts = _prepare((model, shape, replay), budget, plan, repeats)
    given = (QUICK_MINUTES if quick else MINUTES) if minutes is None else minutes
    bench = Bench(setup.decoder, setup.prompts, plan, time.perf_counter() + 60 * given, _tell)
    measured = measure(bench, rivals(base))
    _show(measured, setup, facts | {"config": asdict(base)}, plot, as_json=as_json)
    wrong = not all(row["right"] for row in facts.get("kernels", ()))
    if wrong or any(left.failed for left in measured.left_out):
        raise typer.Exit(1)


def _prepare(
    source: tuple[str | None, str, Path | None], budget: int | None, plan: "Plan", repeats: int
) -> "tuple[Setup, ScoutConfig, dict[str, Any]]":
    """What to decode with, the settings that the engines share, and what the device is and does.

    source: the model, or the shape and the recording of dummy weights.   repeats: see `_facts`.
    """
    from ..bench.gpu.setup import check_contexts, dummy_setup, real_setup, shared_settings  # noqa: PLC0415
    from ..engine.device import find_device  # noqa: PLC0415
    from ..eval.text import code, prose  # noqa: PLC0415
    from ..models.recording import load_recording  # noqa: PLC0415

    model, shape, file = source
    recording = None if file is None else load_recording(file)
    base = shared_settings(recording, budget)
    if model is None:
        check_contexts(plan.contexts, base.block_size, recording)
    place, longest = find_device(plan.engine_config.device), max(plan.contexts) + plan.more
    facts = _facts(plan.engine_config.device, repeats)
    if model is None:
        return dummy_setup(shape, recording, longest, place), base, facts
    return real_setup(model, prose().text + code().text, longest, place), base, facts


def _facts(device: str, repeats: int) -> dict[str, Any]:
    """What results depend on; of a GPU, also what it and its kernels do, told as it is measured.

    repeats: of each kernel; 0 leaves the kernels out.
    """
    from ..bench.common.measure import machine_facts  # noqa: PLC0415
    from ..bench.gpu.kernels import survey  # noqa: PLC0415
    from ..bench.gpu.timing import Timer, as_json, machine  # noqa: PLC0415

    tell = partial(print, file=sys.stderr, flush=True)
    if device == "cpu":
        tell("scout: without a GPU no device kernel is checked: `scout bench kernels` does so for the CPU's")
        return {**machine_facts(), "device": "cpu"}
    if not repeats:
        return {**machine_facts(), **machine()}
    rows, best = survey(Timer(repeats), tell, quick=True)
    link = max((row.rate for row in rows if row.kernel == "copy from host" and row.rate), default=None)
    rates = {"best_bytes_per_second": best, "link_bytes_per_second": link}
    return {**machine_facts(), **machine(), **rates, "kernels": [as_json(row) for row in rows]}


def _show(measured: "Measured", setup: "Setup", facts: dict[str, Any], plot: Path | None, *, as_json: bool) -> None:
    if plot is not None:
        from ..bench.gpu.plot import png  # noqa: PLC0415

        write_file(plot, png(measured.results))
    if as_json:
        cases = [result._asdict() for result in measured.results]
        left_out = [case._asdict() for case in measured.left_out]
        about = {"weights": setup.weights, "choices": setup.choices}
        report = {**facts, **about, "cases": cases, "left_out": left_out, "not_started": measured.not_started}
        print(json.dumps(report), flush=True)
    else:
        show(_table(measured, setup))


def _tell(outcome: "Result | LeftOut") -> None:
    """An outcome as a line of JSON: what follows may be interrupted, and this is not lost."""
    print(json.dumps(outcome._asdict()), file=sys.stderr, flush=True)


def _sizes(flag: str, text: str) -> tuple[int, ...]:
    numbers = read_numbers(flag, text)
    if min(numbers) < 1:
        raise ConfigError(f"{flag}={text!r}: {min(numbers)} is below the least value 1")
    return numbers
