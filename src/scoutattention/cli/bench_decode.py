"""`scout bench decode`: tokens a second and memory, beside other engines."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console, Group
from rich.table import Table

from ..config import DTypeName, ScoutConfig
from ..errors import ConfigError
from ..hardware.host import usable_cores
from .generate import Debug, Model
from .numbers import read_numbers
from .output import check_drawing, check_folder, show, write_file
from .report import plain_table

if TYPE_CHECKING:
    from ..bench.decode.job import DecodeJob, Span
    from ..bench.decode.measure import Measured, Plan, Result

Contexts = Annotated[str, typer.Option("--contexts", help="Lengths of the prompts in tokens.")]
Batches = Annotated[str, typer.Option("--batches", help="Sequences decoded at once, each with a prompt of its own.")]
Engines = Annotated[
    str | None,
    typer.Option(
        "--engines",
        help="Of scout, scout-slots, dense, transformers, transformers-static, llama.cpp, llama.cpp-converted. "
        "Without it, those that are installed.",
    ),
]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Turns of each engine; one more is not counted.")]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Decode steps in a turn.")]
Largest = Annotated[int, typer.Option("--largest", help="Tokens of all prompts of a case; larger ones are left out.")]
Budget = Annotated[int, typer.Option("--budget", help="Tokens that scout attends to per layer and KV head.")]
DType = Annotated[
    DTypeName, typer.Option("--dtype", help="Number format of weights and KV cache, in every engine but llama.cpp.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Plot = Annotated[Path | None, typer.Option("--plot", help="Draw the results into this PNG file.")]
Trace = Annotated[
    Path | None, typer.Option("--trace", help="Write the largest case's steps to this file, for Perfetto or Chrome.")
]

COLUMNS = ("Engine", "Context", "Batch", "Budget", "ms/step", "Tokens/s", "Prompt/s", "MiB", "Peak", "Same")


def _engines(text: str | None) -> tuple[str, ...]:
    from ..bench.decode.process import ENGINES  # noqa: PLC0415

    names = tuple(ENGINES) if text is None else tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in ENGINES:
            raise ConfigError(f"--engines={text!r}: {name!r} is not one of {', '.join(ENGINES)}")
    return names


def _jobs(model: str, plan: "Plan", dtype: DTypeName, budget: int) -> "list[DecodeJob]":
    """A job for each case; every sequence of a batch reads another part of the text."""
    from ..bench.decode.job import DecodeJob  # noqa: PLC0415
    from ..eval.text import Text, code, first_tokens, prose  # noqa: PLC0415
    from ..models.formats.hub import gguf_file, resolve  # noqa: PLC0415
    from ..models.loader import stored_dtype  # noqa: PLC0415
    from ..models.text import Tokenizer  # noqa: PLC0415

    directory = resolve(model, dtype)
    kind = cast(DTypeName, stored_dtype(directory)) if dtype == "auto" else dtype
    text = Text("of Python's topics and sources", prose().text + code().text)
    needed = max((context * batch for context, batch in plan.cases()), default=1)
    ids = first_tokens(Tokenizer.from_directory(directory), text, needed)
    return [
        DecodeJob(
            directory=directory,
            gguf=gguf_file(model),
            dtype=kind,
            prompts=tuple(tuple(ids[row * context : (row + 1) * context]) for row in range(batch)),
            max_len=context + plan.new_tokens,
            budget=budget,
            threads=usable_cores(),
        )
        for context, batch in plan.cases()
    ]


def _without_missing(plan: "Plan", job: "DecodeJob", *, asked: bool) -> "Plan":
    """The plan for engines that can run. Raises ConfigError where another was asked for by name."""
    from ..bench.decode.measure import missing  # noqa: PLC0415

    reasons = {engine: reason for engine in plan.engines if (reason := missing(engine, job)) is not None}
    for reason in reasons.values():
        if asked:
            raise ConfigError(f"--engines: {reason}")
        print(f"scout: left out: {reason}", file=sys.stderr)
    return replace(plan, engines=tuple(engine for engine in plan.engines if engine not in reasons))


def _row(result: "Result") -> tuple[str, ...]:
    return (
        *(result.engine, f"{result.context:,}", str(result.batch)),
        "all" if result.budget is None else f"{result.budget:,}",
        *(f"{result.ms_per_step:.1f}", f"{result.tokens_per_s:.1f}", f"{result.prefill_tokens_per_s:.0f}"),
        *(f"{result.rss_mib:,.0f}", f"{result.peak_mib:,.0f}"),
        "" if result.same_tokens is None else f"{result.same_tokens:.0%}",
    )


def _note(result: "Result") -> str:
    """What an engine ran with."""
    note = f"{result.engine}: {result.dtype} weights, {result.cache_dtype} cache"
    return note if result.calibration is None else f"{note}, calibration: {result.calibration}"


def _stage_table(result: "Result", spans: "list[Span]", steps: int) -> Table:
    from ..bench.decode.stages import exclusive  # noqa: PLC0415

    table = plain_table(f"{result.engine}, {result.batch} x {result.context:,} tokens", "ms/step", "Share")
    stages = exclusive(spans)
    for stage, seconds in stages.items():
        table.add_row(stage, f"{seconds / steps * 1e3:.2f}", f"{seconds / sum(stages.values()):.0%}")
    return table


def _tables(cases: "list[Measured]", steps: int) -> Group:
    table = plain_table(*COLUMNS)
    table.title, table.title_justify = "Prompts and answers in tokens a second", "left"
    notes = dict.fromkeys(_note(result) for case in cases for result in case.results)
    table.caption, table.caption_justify = "\n".join(notes), "left"
    for case in cases:
        for result in case.results:
            table.add_row(*_row(result), end_section=result is case.results[-1])
    stages = [
        _stage_table(result, case.spans[result.engine], steps)
        for case in cases
        for result in case.results
        if result.engine in case.spans
    ]
    return Group(table, *stages)


def _report(cases: "list[Measured]", plan: "Plan") -> dict[str, object]:
    from ..bench.common.measure import machine_facts  # noqa: PLC0415
    from ..bench.decode.stages import exclusive  # noqa: PLC0415

    def stages(case: "Measured", engine: str) -> dict[str, float]:
        return {name: s / plan.traced * 1e3 for name, s in exclusive(case.spans.get(engine, ())).items()}

    rows = [result._asdict() | {"stages_ms": stages(case, result.engine)} for case in cases for result in case.results]
    left_out = [{"context": context, "batch": batch} for context, batch in plan.left_out()]
    return machine_facts() | {"cases": rows, "left_out": left_out}


def decode(
    context: typer.Context,
    model: Model,
    *,
    contexts: Contexts = "1024,7936",
    batches: Batches = "1,4",
    engines: Engines = None,
    rounds: Rounds = 5,
    steps: Steps = 6,
    largest: Largest = 16384,
    budget: Budget = 1024,
    dtype: DType = "auto",
    as_json: AsJson = False,
    plot: Plot = None,
    trace: Trace = None,
    debug: Debug = False,
) -> None:
    """Decode real text with this engine and with others: the same model, prompts and threads.

    All have the same weights and dtype, except llama.cpp, which has its file's own weights and a float16 cache, as
    people use it; llama.cpp-converted has what the others have. Each engine has a process of its own; they take turns,
    so that what disturbs the machine disturbs all of them. 'Same' is how much of the answer is that of full attention,
    up to the first other token.
    """
    context.obj.debug = debug
    ScoutConfig(budget=budget)  # raises before minutes are spent
    if plot is not None:
        check_drawing("--plot", plot)
    if trace is not None:
        check_folder("--trace", trace)
    # Inside, so that help and wrong arguments need not load PyTorch, which takes seconds.
    from ..bench.decode.measure import Plan, measure  # noqa: PLC0415

    lengths, sizes = read_numbers("--contexts", contexts), read_numbers("--batches", batches)
    plan = Plan(lengths, sizes, _engines(engines), rounds, steps, most_tokens=largest)
    jobs = _jobs(model, plan, dtype, budget)
    if not jobs:
        raise ConfigError(f"--largest={largest} leaves out every case of {contexts} tokens by {batches}: raise it")
    plan = _without_missing(plan, jobs[0], asked=engines is not None)
    errors = Console(stderr=True)
    with errors.status("Starting") as status:
        cases = [measure(plan, job, status.update) for job in jobs]
    for length, size in plan.left_out():
        print(f"scout: left out: {size} x {length} tokens, above --largest {largest}", file=sys.stderr)
    _write(cases, plot, trace)
    if as_json:
        print(json.dumps(_report(cases, plan)), flush=True)
    else:
        show(_tables(cases, plan.traced))


def _write(cases: "list[Measured]", plot: Path | None, trace: Path | None) -> None:
    if plot is not None:
        from ..bench.decode.plot import png  # noqa: PLC0415

        write_file(plot, png([result for case in cases for result in case.results]))
    if trace is not None:
        from ..bench.decode.trace import trace as trace_json  # noqa: PLC0415

        write_file(trace, trace_json(cases[-1].spans).encode())
