"""What `scout bench decode` does: it runs every engine that is installed, and prints tokens a second and memory."""

import json
import statistics
import sys
from dataclasses import replace
from typing import cast

from ...bench.common.measure import host_facts
from ...bench.decode.job import DecodeJob, Traced
from ...bench.decode.measure import Measured, Result, Workload, measure, missing
from ...config import DTypeName, ScoutConfig
from ...errors import ConfigError
from ...eval.text import Text, code, first_tokens, prose
from ...hardware.host import usable_cores
from ...models.loader import open_files
from ...models.resolve import gguf_file, resolve
from ...planner.compare import METHOD
from ...trace.chrome import to_json
from ...trace.timeline import stage_seconds
from ..bench import DecodeFlags
from ..command import load_action
from ..output import PlainTable, busy, show, write_file

COLUMNS = ("Engine", "Context", "Batch", "Budget", "ms/step", "Tokens/s", "Prompt/s", "MiB", "Peak", "Same")


def decode(flags: DecodeFlags, workload: Workload, scout: ScoutConfig) -> None:
    """Measure every case, then write what the flags ask for.   scout: of the engines that have a budget."""
    jobs = _jobs(flags, workload, scout)
    workload = _without_missing(workload, jobs[0], asked=flags.engines is not None)
    with busy("Starting") as tell:
        cases = [measure(workload, job, tell) for job in jobs]
    for length, size in workload.left_out():
        print(f"scout: left out: {size} x {length} tokens, above --largest {workload.largest}", file=sys.stderr)
    results = [result for case in cases for result in case.results]
    if flags.plot is not None:
        write_file(
            flags.plot, load_action("drawings").decode_png(results, f"{flags.model}, budget {scout.budget:,} tokens")
        )
    if flags.trace is not None:
        timelines = {engine: one.timeline for engine, one in cases[-1].traced.items()}
        write_file(flags.trace, to_json(timelines).encode())
    traced = [_traced_numbers(case.traced.get(result.engine)) for case in cases for result in case.results]
    if flags.as_json:
        rows = [result._asdict() | more for result, more in zip(results, traced, strict=True)]
        left_out = [{"context": context, "batch": batch} for context, batch in workload.left_out()]
        about = {
            "method": {name: getattr(scout, name) for name in METHOD},
            "slots": flags.slots,
            "steps": [workload.steps, (workload.rounds + 1) * workload.steps],
        }
        report = about | {"cases": rows, "left_out": left_out}
        print(json.dumps(host_facts() | report), flush=True)
    else:
        show(_table(cases))


def _traced_numbers(traced: Traced | None) -> dict[str, object]:
    """Of steps that were traced: milliseconds of a step's stages, and how many times as long a step takes."""
    if traced is None:
        return {"stages_ms": {}, "traced_ratio": None}
    seconds = stage_seconds(traced.timeline).items()
    ratio = statistics.median(traced.seconds) / statistics.median(traced.plain_s)
    return {"stages_ms": {name: s / len(traced.seconds) * 1e3 for name, s in seconds}, "traced_ratio": ratio}


def _jobs(flags: DecodeFlags, workload: Workload, scout: ScoutConfig) -> list[DecodeJob]:
    """A job for each case; every sequence of a batch reads another part of the text."""
    path = resolve(flags.model)
    files = open_files(path)
    dtype = cast(DTypeName, files.stored_dtype()) if flags.dtype == "auto" else flags.dtype
    text = Text("of Python's topics and sources", prose().text + code().text)
    needed = max(context * batch for context, batch in workload.cases())
    ids = first_tokens(files.tokenizer(), text, needed)
    return [
        DecodeJob(
            model=path,
            gguf=gguf_file(flags.model),
            dtype=dtype,
            prompts=tuple(tuple(ids[row * context : (row + 1) * context]) for row in range(batch)),
            max_len=context + workload.new_tokens,
            scout=scout,
            slots=flags.slots,
            threads=usable_cores(),
        )
        for context, batch in workload.cases()
    ]


def _without_missing(workload: Workload, job: DecodeJob, *, asked: bool) -> Workload:
    """The workload for engines that can run. Raises ConfigError where another was asked for by name."""
    reasons = {engine: reason for engine in workload.engines if (reason := missing(engine, job)) is not None}
    for reason in reasons.values():
        if asked:
            raise ConfigError(f"--engines: {reason}")
        print(f"scout: left out: {reason}", file=sys.stderr)
    return replace(workload, engines=tuple(engine for engine in workload.engines if engine not in reasons))


def _table(cases: list[Measured]) -> PlainTable:
    table = PlainTable(*COLUMNS, keys=3, title="Prompts and answers in tokens per second")
    notes: dict[str, None] = {}
    for case in cases:
        for result in case.results:
            table.add_row(*_row(result), end_section=result is case.results[-1])
            note = f"{result.engine}: {result.dtype} weights, {result.cache_dtype} cache"
            notes[note if result.calibration is None else f"{note}, calibration: {result.calibration}"] = None
    table.caption = "\n".join(notes)
    return table


def _row(result: Result) -> tuple[str, ...]:
    return (
        *(result.engine, f"{result.context:,}", str(result.batch)),
        "all" if result.budget is None else f"{result.budget:,}",
        *(f"{result.ms_per_step:.1f}", f"{result.tokens_per_s:.1f}", f"{result.prefill_tokens_per_s:.0f}"),
        *(f"{result.rss_mib:,.0f}", f"{result.peak_mib:,.0f}"),
        "" if result.same_tokens is None else f"{result.same_tokens:.0%}",
    )
