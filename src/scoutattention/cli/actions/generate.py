"""What `scout generate` does: it streams an answer, then prints the numbers of the run."""

import json
import sys
from dataclasses import asdict, replace
from typing import Any

from ...config import SamplingParams, ScoutConfig
from ...config.fields import format_bytes
from ...engine.llm import LLM
from ...engine.prompts import of_each_answer
from ...engine.stats import Stats
from ...hardware.host import peak_memory
from ..generate import GenerateFlags
from ..inputs import Message
from ..output import PlainTable, loading, show
from ..settings import Settings
from .answer import chunks
from .trace import traced

JSON_STATS = (
    *("prompt_tokens", "new_tokens", "ttft_s", "tokens_per_s", "kv_bytes_total", "kv_bytes_device", "cpu_share"),
    *("guarded_heads", "hidden_cpu_s", "unhidden_cpu_s", "recalled_bytes"),
)


def generate(flags: GenerateFlags, prompt: str | list[Message], settings: Settings) -> None:
    """Answer a prompt or a conversation, once or several times, and print the numbers of the run."""
    with loading(flags.model):
        llm = LLM(flags.model, scout="auto" if flags.auto else settings.scout, **asdict(settings.engine))
    each = of_each_answer(settings.params)
    with traced(llm, flags.trace), llm:
        answers, ran = [], []
        for number, params in enumerate(each, start=1):
            if len(each) > 1 and not flags.as_json:
                print(f"--- answer {number} of {len(each)} ---", flush=True)
            answers.append(_answer(llm, prompt, params, flags))
            llm.settle()
            ran.append(llm.stats())
    first = ran[0]  # the other answers are to the same prompt
    stats = replace(ran[-1], prompt_tokens=first.prompt_tokens, cached_tokens=first.cached_tokens)
    if not flags.as_json:
        table = stats_table(stats)
        if flags.auto:
            table.add_row("Chosen", chosen(llm.scout))
        table.add_row("Memory", f"{format_bytes(peak_memory())} at most{_of_the_file(llm)}")
        show(table, stderr=not sys.stdout.isatty())
        return
    numbers = {name: getattr(stats, name) for name in JSON_STATS} | {"peak_memory": peak_memory()}
    scout, engine = (llm.scout, llm.engine_config) if flags.auto else (settings.scout, settings.engine)
    config = {"model": llm.model, **asdict(scout), **asdict(engine)}
    about = {"calibration": llm.engine.calibration, "config": config}
    said = answers[0] if len(answers) == 1 else {"answers": answers}
    print(json.dumps(said | numbers | about), flush=True)


def _answer(llm: LLM, prompt: str | list[Message], params: SamplingParams, flags: GenerateFlags) -> dict[str, Any]:
    """An answer as the JSON output has it; printed as it is made where there is no such output."""
    parts = []
    for chunk in chunks(llm, prompt, params, chat=flags.chat):
        parts.append(chunk)
        if not flags.as_json:
            print(chunk.text, end="", flush=True)
    if not flags.as_json:
        print(flush=True)
    answer: dict[str, Any] = {
        "text": "".join(part.text for part in parts),
        "token_ids": [token for part in parts for token in part.token_ids],
        "finish_reason": parts[-1].finish_reason,
    }
    if params.logprobs is not None:
        answer["logprobs"] = [one for part in parts for one in part.logprobs or ()]
    if params.prompt_logprobs is not None:
        answer["prompt_logprobs"] = parts[0].prompt_logprobs
    return answer


def chosen(scout: ScoutConfig) -> str:
    """What --auto chose."""
    if scout.budget is None:
        return "full attention: it is faster here, or all that is needed"
    return f"scout, with a budget of {scout.budget:,} tokens and lookahead {scout.lookahead}"


def _of_the_file(llm: LLM) -> str:
    """What of the memory the system can take back, if anything."""
    size = sum(file.size for file in llm.engine.runner.decoder.weights.files)
    return f", {format_bytes(size)} of it the model's file" if size else ""


def stats_table(stats: Stats) -> PlainTable:
    """The run in a few lines; nothing of what happens between device and host where the device held everything."""
    table = PlainTable("", "")
    for name, value in stats.rows().items():
        table.add_row(name, value)
    return table
