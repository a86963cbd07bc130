"""What a run prints besides its text: a table for people, one JSON object for programs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from .settings import Settings

if TYPE_CHECKING:
    from ..engine.llm import LLM
    from ..engine.stats import Stats

JSON_STATS = (
    "prompt_tokens",
    "new_tokens",
    "ttft_s",
    "tokens_per_s",
    "kv_bytes_total",
    "kv_bytes_device",
    "cpu_share",
    "guarded_heads",
    "hidden_cpu_s",
    "unhidden_cpu_s",
    "recalled_bytes",
)


def format_bytes(count: float) -> str:
    """`count` bytes with a binary unit and three digits or so, as in 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def plain_table(*columns: str) -> Table:
    """A table without frame, with a header where `columns` are named."""
    return Table(*columns, box=box.SIMPLE_HEAD, show_header=any(columns), pad_edge=False)


def stats_table(stats: "Stats") -> Table:
    """The run in a few lines; nothing of what happens between device and host where the device held everything."""
    divided = stats.kv_bytes_device < stats.kv_bytes_total
    full, held = format_bytes(stats.kv_bytes_total), format_bytes(stats.kv_bytes_device)
    rows = {
        "Prompt": f"{stats.prompt_tokens:,} tokens, first new token after {stats.ttft_s:.2f} s",
        "Answer": f"{stats.new_tokens:,} tokens, {stats.tokens_per_s:.1f} tokens/s",
        "KV cache": f"{full} in full, {held} on the device" if divided else full,
    }
    if divided:
        hidden, waited = f"{stats.hidden_cpu_s:.2f} s hidden behind the device", f"{stats.unhidden_cpu_s:.2f} s"
        rows |= {
            "CPU's share": f"{stats.cpu_share:.1%} of the chosen blocks",
            "CPU's time": f"{hidden}, {waited} waited for",
            "Recalled": f"{format_bytes(stats.recalled_bytes)} to the device",
        }
    table = plain_table("", "")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def json_report(llm: "LLM", settings: Settings, answer: tuple[str, Sequence[int]]) -> str:
    """One JSON object: the answer's text and token ids, the numbers of the run, and what it ran with."""
    text, token_ids = answer
    stats = llm.stats()
    report: dict[str, object] = {"text": text, "token_ids": list(token_ids)}
    report |= {name: getattr(stats, name) for name in JSON_STATS} | {"calibration": llm.engine.calibration}
    report["config"] = {"model": llm.model, **asdict(settings.scout), **asdict(settings.engine)}
    return json.dumps(report)
