"""What `scout generate` does: it streams an answer, then prints the numbers of the run."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from ...bench.decode.stages import watch_engine
from ...bench.decode.trace import trace
from ...engine.llm import LLM
from ...engine.stats import Stats
from ..generate import GenerateFlags
from ..inputs import Message
from ..output import PlainTable, busy, show, write_file
from ..settings import Settings
from .answer import chunks

JSON_STATS = (
    *("prompt_tokens", "new_tokens", "ttft_s", "tokens_per_s", "kv_bytes_total", "kv_bytes_device", "cpu_share"),
    *("guarded_heads", "hidden_cpu_s", "unhidden_cpu_s", "recalled_bytes"),
)


def generate(flags: GenerateFlags, prompt: str | list[Message], settings: Settings) -> None:
    """Answer a prompt or a conversation, and print the numbers of the run."""
    with busy(f"Loading {flags.model}"):
        llm = LLM(flags.model, scout=settings.scout, **asdict(settings.engine))
    texts: list[str] = []
    token_ids: list[int] = []
    reason = None
    with llm, _traced(llm, flags.trace):
        for chunk in chunks(llm, prompt, settings.params, chat=flags.chat):
            texts.append(chunk.text)
            token_ids.extend(chunk.token_ids)
            reason = chunk.finish_reason
            if not flags.as_json:
                print(chunk.text, end="", flush=True)
    if not flags.as_json:
        print(flush=True)
        show(stats_table(llm.stats()), stderr=not sys.stdout.isatty())
        return
    numbers = {name: getattr(llm.stats(), name) for name in JSON_STATS}
    config = {"model": llm.model, **asdict(settings.scout), **asdict(settings.engine)}
    about = {"calibration": llm.engine.calibration, "config": config}
    answer = {"text": "".join(texts), "token_ids": token_ids, "finish_reason": reason}
    print(json.dumps(answer | numbers | about), flush=True)


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


def stats_table(stats: Stats) -> PlainTable:
    """The run in a few lines; nothing of what happens between device and host where the device held everything."""
    table = PlainTable("", "")
    for name, value in stats.rows().items():
        table.add_row(name, value)
    return table
