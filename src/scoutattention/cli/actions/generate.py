"""What `scout generate` does: it streams an answer, then prints the numbers of the run."""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ...bench.decode.stages import watch_engine
from ...bench.decode.trace import trace
from ...engine.llm import LLM
from ...engine.stats import Stats
from ..generate import GenerateFlags
from ..output import busy, plain_table, progress, write_file
from ..settings import Settings

JSON_STATS = (
    *("prompt_tokens", "new_tokens", "ttft_s", "tokens_per_s", "kv_bytes_total", "kv_bytes_device", "cpu_share"),
    *("guarded_heads", "hidden_cpu_s", "unhidden_cpu_s", "recalled_bytes"),
)


def generate(flags: GenerateFlags, prompt: str, settings: Settings) -> None:
    """Answer a prompt, and print the numbers of the run."""
    with busy(f"Loading {flags.model}"):
        llm = LLM(flags.model, scout=settings.scout, **asdict(settings.engine))
    with _traced(llm, flags.trace):
        text, token_ids = _stream(llm, prompt, settings, chat=flags.chat, echo=not flags.as_json)
    if not flags.as_json:
        Console(stderr=not sys.stdout.isatty()).print(stats_table(llm.stats()))
        return
    numbers = {name: getattr(llm.stats(), name) for name in JSON_STATS}
    config = {"model": llm.model, **asdict(settings.scout), **asdict(settings.engine)}
    about = {"calibration": llm.engine.calibration, "config": config}
    print(json.dumps({"text": text, "token_ids": token_ids, **numbers, **about}), flush=True)


def _stream(llm: LLM, prompt: str, settings: Settings, *, chat: bool | None, echo: bool) -> tuple[str, list[int]]:
    """The answer's text and token ids; `echo` writes the text to stdout as it comes."""
    texts: list[str] = []
    token_ids: list[int] = []
    with ExitStack() as reading:
        watch = reading.enter_context(progress())

        def on_prompt(done: int, total: int) -> None:
            watch("Reading the prompt", done, total)

        for chunk in llm.stream(prompt, settings.params, chat=chat, on_prompt=on_prompt):
            reading.close()
            texts.append(chunk.text)
            token_ids.extend(chunk.token_ids)
            if echo:
                print(chunk.text, end="", flush=True)
    if echo:
        print(flush=True)
    return "".join(texts), token_ids


@contextmanager
def _traced(llm: LLM, file: Path | None) -> Iterator[None]:
    """Watch the engine, and write what was seen to `file`, if there is one."""
    if file is None:
        yield
        return
    stages = watch_engine(llm.engine)
    try:
        yield
    finally:
        write_file(file, trace({"scout": stages.spans}).encode())


def stats_table(stats: Stats) -> Table:
    """The run in a few lines; nothing of what happens between device and host where the device held everything."""
    table = plain_table("", "")
    for name, value in stats.rows().items():
        table.add_row(name, value)
    return table
