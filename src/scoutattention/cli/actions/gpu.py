"""What `scout bench gpu` does: it times the device kernels, then runs the engines, and prints what became of them."""

import itertools
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from operator import attrgetter
from typing import Any

import typer

from ...bench.common.measure import host_facts
from ...bench.gpu.cases import LeftOut, Measured, Result, Rival, Workload, other_programs, rivals
from ...bench.gpu.decode import Bench
from ...bench.gpu.kernels import survey
from ...bench.gpu.prefill import prefill_speeds
from ...bench.gpu.rounds import measure
from ...bench.gpu.setup import check_contexts, dummy_setup, real_setup, shared_settings
from ...bench.gpu.timing import Timer, as_json, gpu_facts
from ...config import ScoutConfig
from ...config.fields import format_bytes
from ...engine.device import find_device
from ...errors import ConfigError
from ...eval.text import code, prose
from ...models.recording import load_recording
from ...trace.chrome import to_json
from ..bench import GpuFlags
from ..command import load_action
from ..output import PlainTable, show, write_file

COLUMNS = (
    "Engine",
    "Context",
    "Batch",
    "ms/step",
    "Tokens/s",
    "Prompt/s",
    "Device idle",
    "CPU hidden",
    "Waited",
    "Link",
    "Share",
)

PER_LAYER = ((False, "kernels"), (True, "copies"))
MOST_KERNELS = 24
"""Names of a step's kernels that are listed."""


def gpu(flags: GpuFlags, workload: Workload, minutes: float) -> None:
    """Measure, then write what the flags ask for. Raises typer.Exit where something is wrong or failed."""
    recording = None if flags.replay is None else load_recording(flags.replay)
    base = shared_settings(recording, flags.budget)
    longest, device = max(workload.contexts) + workload.more, find_device(flags.device)
    if flags.model is None:
        check_contexts(workload.contexts, base.block_size, recording)
    engines = _engines(flags, workload, base)
    facts = _facts(flags)
    if flags.model is None:
        setup = dummy_setup(flags.shape, recording, longest, device, workload.device_limit)
    else:
        setup = real_setup(flags.model, prose().text + code().text, longest, device, workload.device_limit)
    until = time.perf_counter() + 60 * minutes
    bench = Bench(setup.decoder, setup.prompts, workload, until, _tell, setup.config_json)
    prompt, prefill, unread = prefill_speeds(bench, engines)
    for left in unread:
        _tell(left)
    measured = measure(bench, engines)
    measured.left_out[:0] = unread
    if flags.trace is not None:
        write_file(flags.trace, to_json(bench.timelines).encode())
    if flags.plot is not None:
        write_file(
            flags.plot,
            load_action("drawings").gpu_png(measured.results, f"{setup.weights}, budget {base.budget} tokens"),
        )
    if flags.as_json:
        about: dict[str, Any] = {"config": asdict(base), "weights": setup.weights, "choices": setup.choices}
        about |= {"kv_dtype": flags.kv_dtype, "device_limit": workload.device_limit}
        about["prefill"] = {"tokens": prompt, "tokens_per_s": prefill}
        cases = [result.as_json(kernels=flags.profile) for result in measured.results]
        left_out = [case._asdict() for case in measured.left_out]
        report = {**facts, **about, "cases": cases, "left_out": left_out, "not_started": measured.not_started}
        print(json.dumps(report), flush=True)
    else:
        title = f"{setup.weights}; choices: {setup.choices}{_memory(workload)}; prompts of {prompt:,} tokens"
        show(_table(measured, title, prefill))
        for result in measured.results if flags.profile else ():
            show(*profile_table(result, setup.decoder.shape.num_layers))
    wrong = not all(row["right"] for row in facts.get("kernels", ()))
    if wrong or any(left.failed for left in measured.left_out):
        raise typer.Exit(1)


def _engines(flags: GpuFlags, workload: Workload, base: ScoutConfig) -> list[Rival]:
    """Those that are asked for. Raises ConfigError where one of them cannot run here."""
    known, wanted = rivals(base), workload.engines
    if flags.device == "cuda" and find_spec("transformers") is not None:
        known += other_programs(base)
    missing = sorted({*(wanted or ())} - {rival.name for rival in known})
    if missing:
        needed = "needs a GPU, and transformers: run pip install 'scout-attention[bench]'"
        raise ConfigError(f"--engines: {', '.join(missing)} {needed}")
    return [rival for rival in known if wanted is None or rival.name in wanted]


def _facts(flags: GpuFlags) -> dict[str, Any]:
    """What results depend on; of a GPU, also the bandwidths and what its kernels do, told as they are measured."""
    tell = partial(print, file=sys.stderr, flush=True)
    if flags.device == "cpu":
        tell("scout: without a GPU no device kernel is checked: `scout bench kernels` does so for the CPU's")
        return {**host_facts(), "device": "cpu"}
    if flags.no_kernels:
        return gpu_facts()
    rows, best = survey(Timer(10 if flags.quick else 30), tell, quick=True)
    link = max((row.rate for row in rows if row.kernel == "copy from host" and row.rate), default=None)
    rates = {"best_bytes_per_second": best, "link_bytes_per_second": link}
    return {**gpu_facts(), **rates, "kernels": [as_json(row) for row in rows]}


def _tell(outcome: Result | LeftOut) -> None:
    """An outcome as a line of JSON: what follows may be interrupted, and this is not lost."""
    fields = outcome.as_json() if isinstance(outcome, Result) else outcome._asdict()
    print(json.dumps(fields), file=sys.stderr, flush=True)


def _table(measured: Measured, title: str, prefill: Mapping[str, float]) -> PlainTable:
    table = PlainTable(*COLUMNS, keys=3, title=title)
    notes = [
        f"left out: {case.engine}, {case.batch} x {case.context}: {case.why}" for case in measured.smallest_left_out
    ]
    if measured.not_started:
        notes.append(f"{measured.not_started} cases were not started: raise --minutes")
    table.caption = "\n".join(notes)
    case = attrgetter("context", "batch")
    for _, results in itertools.groupby(sorted(measured.results, key=case), key=case):
        for result in results:
            table.add_row(*_row(result, prefill.get(result.engine)))
        table.add_section()
    return table


def _memory(workload: Workload) -> str:
    """What was asked of memory, for the title."""
    packed, limit = workload.engine_config.kv_dtype, workload.device_limit
    pages = "" if packed == "auto" else f"; pages in host memory: {packed}"
    return pages if limit is None else f"{pages}; at most {format_bytes(limit)} of the device"


def _row(result: Result, prefill: float | None) -> tuple[str, ...]:
    idle = result.device_idle_share
    return (
        *(result.engine, f"{result.context:,}", str(result.batch)),
        *(f"{result.ms_per_step:.2f}", f"{result.tokens_per_s:.1f}"),
        "" if prefill is None else f"{prefill:,.0f}",
        "" if idle is None else f"{idle:.0%}",
        *(f"{result.hidden_ms:.2f} ms", f"{result.unhidden_ms:.2f} ms"),
        *(format_bytes(result.link_bytes), f"{result.share:.1%}"),
    )


def profile_table(result: Result, layers: int) -> tuple[str, PlainTable | str]:
    """What the device ran in a step, by name: a title, and a table."""
    idle, ms = result.device_idle_share, result.ms_per_step
    busy = "" if idle is None else f", device busy {ms * (1 - idle):.2f} ms, idle {idle:.0%}"
    counts = (f"{result.per_layer(layers, copies=copies):.1f} {what}" for copies, what in PER_LAYER)
    title = (
        f"{result.engine}, {result.batch} x {result.context:,}: step {ms:.2f} ms{busy}; a layer: {', '.join(counts)}"
    )
    table = PlainTable("Kernel or copy", "ms", "Of the step", "Launches")
    for kernel in result.kernels[:MOST_KERNELS]:
        table.add_row(kernel.name, f"{kernel.ms:.3f}", f"{kernel.ms / ms:.1%}", f"{kernel.launches:.1f}")
    rest = result.kernels[MOST_KERNELS:]
    if rest:
        whole, launches = sum(kernel.ms for kernel in rest), sum(kernel.launches for kernel in rest)
        table.add_row(f"{len(rest)} others", f"{whole:.3f}", f"{whole / ms:.1%}", f"{launches:.1f}")
    return title, table if result.kernels else "the profiler saw no GPU"
