"""What `scout bench serve` does: it starts a server where none was named, asks it, and prints how long that took."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import typer

from ...bench.common.measure import host_facts
from ...bench.serve.load import Target, Workload, find_target, measure
from ...bench.serve.results import Limits, Result, result
from ...errors import ScoutError
from ...eval.text import code, prose
from ..command import load_action
from ..output import PlainTable, busy, show, write_file
from ..server.load import LoadFlags, is_url
from .texts import read_texts

CODE = "import sys; from scoutattention.cli import main; sys.exit(main())"
URL = re.compile(r"is served at (\S+)/v1")
COLUMNS = (
    *("Rate", "Failed", "Requests/s", "Good/s", "Tokens/s", "First token ms: 50 %", "90 %", "99 %"),
    *("Between tokens ms: 50 %", "90 %", "99 %", "Whole s: 50 %", "99 %"),
)


def load(flags: LoadFlags, rates: Sequence[float]) -> None:
    """Measure, then write what the flags ask for. Raises typer.Exit where a request failed."""
    limits = Limits(flags.max_ttft, flags.max_between)
    text = "\n".join(one.text for one in read_texts(flags.text) or [prose(), code()])
    workload = Workload(flags.requests, flags.prompt_tokens, flags.new_tokens, text, flags.seed)
    with busy("Starting") as tell:
        place = nullcontext(flags.target) if is_url(flags.target) else _served(flags.target)
        with place as url:
            target = find_target(url, flags.api_key)
            results = [result(one, limits) for one in measure(target, workload, rates, tell)]
    prompt = results[0].prompt_tokens or flags.prompt_tokens
    about = f"{target.model}: prompts of {prompt:,.0f} tokens, answers of {flags.new_tokens:,}"
    if flags.plot is not None:
        write_file(flags.plot, load_action("drawings").serve_png(results, about))
    if flags.as_json:
        print(json.dumps(_report(flags, target, limits, results)), flush=True)
    else:
        show(_table(results, about, limits))
    if any(one.failed for one in results):
        raise typer.Exit(1)


@contextmanager
def _served(model: str) -> Iterator[str]:
    """The URL of a server in a process of its own. Raises ScoutError where it does not start."""
    command = [sys.executable, "-c", CODE, "serve", model, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = ""
            for said in process.stderr:
                if match := URL.search(said):
                    yield match[1]
                    return
            raise ScoutError(said.strip().removeprefix("scout: ") or f"no server started: exit code {process.wait()}")
        finally:
            process.terminate()


def _report(flags: LoadFlags, target: Target, limits: Limits, results: Sequence[Result]) -> dict[str, Any]:
    rows = [
        {**one._asdict(), **{name: getattr(one, name)._asdict() for name in ("ttft", "between", "whole")}}
        | {"rate": "inf" if math.isinf(one.rate) else one.rate}
        for one in results
    ]
    about = {"url": target.url, "model": target.model, "requests": flags.requests, "new_tokens": flags.new_tokens}
    return host_facts() | about | {"limits": limits._asdict(), "rates": rows}


def _table(results: Sequence[Result], about: str, limits: Limits) -> PlainTable:
    table = PlainTable(*COLUMNS, title=about)
    for one in results:
        table.add_row(
            *(f"{one.rate:g}", str(one.failed), f"{one.requests_per_s:.2f}", f"{one.goodput:.2f}"),
            *(f"{one.tokens_per_s:.1f}", *(f"{ms:,.0f}" for ms in (*one.ttft, *one.between))),
            *(f"{ms / 1e3:.2f}" for ms in (one.whole.p50, one.whole.p99)),
        )
    errors = dict.fromkeys(error for one in results for error in one.errors)
    notes = [f"good: first token within {limits.ttft_s:g} s, and {limits.between_s:g} s between tokens on average"]
    table.caption = "\n".join([*notes, *(f"failed: {error}" for error in list(errors)[:3])])
    return table
