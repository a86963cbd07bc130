"""Writes docs/settings.md from what the settings say of themselves.

`python -m scoutattention.cli.settings_page docs/settings.md`
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import fill

from ..config import Ablation, EngineConfig, SamplingParams, ScoutConfig, Setting
from ..errors import ConfigError
from .settings import FIXED, REPEATED, flag_of, settings_of, variable_of

WIDTH = 120
HEAD = """\
# Settings

This page lists every setting, its default, and when to change it. Start with `budget`, `device_memory` and `lookahead`.

| Where | Name of a setting | Example |
|---|---|---|
| Python | the first name of its row; `LLM` takes the settings of `EngineConfig` as keyword arguments | \
`LLM(model, scout=ScoutConfig(budget=2048), device_memory="8GiB")` |
| Command line | the flag below it; `--help-all` lists all flags of a command | `--device-memory 8GiB` |
| Environment | the name in capitals, if the row has one; a flag overrides a variable | `SCOUT_DEVICE_MEMORY=8GiB` |

A size is a number with a unit, as in `512MiB` or `8GiB`. In Python a size may also be a number of bytes.
[The glossary](glossary.md) defines the terms. This page is made by `python -m scoutattention.cli.settings_page
docs/settings.md`.

[Accuracy](accuracy.md#what-each-idea-is-worth) has measurements of `budget`, `guard`, `max_cpu_share`, `lookahead` and
`kv_dtype`. `block_size`, `sink_blocks`, `recent_blocks`, `calibration`, `graphs` and `workers` have not been
measured yet.
"""
ABLATION = (
    "`Ablation` is for experiments only. Each field switches one idea of the method off, or to another design's; "
    "[accuracy](accuracy.md#what-each-idea-is-worth) shows what most of them are worth. "
    "`scout eval fidelity` and `scout eval retrieval` take "
    'these settings as `--ablation NAME=VALUE`. In Python write `ScoutConfig(ablation=Ablation(digest="minmax"))`. '
    "There are no environment variables."
)
SECTIONS: tuple[tuple[type, str, str], ...] = (
    (ScoutConfig, "The method", "`ScoutConfig`: which tokens are attended to, and by which processor."),
    (EngineConfig, "The engine", "`EngineConfig`: the device, its kernels, and the sizes of the memories."),
    (
        SamplingParams,
        "A request",
        "`SamplingParams`: how the tokens of an answer are sampled, and when the answer ends.",
    ),
    (Ablation, "The ablation", ABLATION),
)


def page() -> str:
    """The page in Markdown."""
    return "\n".join([HEAD, *(line for section in SECTIONS for line in _section(*section))]).rstrip() + "\n"


def _section(cls: type, title: str, about: str) -> Iterator[str]:
    """A heading, a paragraph, and a table with a row for each setting."""
    columns = ["Setting", "Default", "What it is", "When to change it"]
    if cls is Ablation:
        columns.pop()  # an experiment changes it
    yield f"## {title}\n"
    yield fill(about, WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for name, (item, setting) in settings_of(cls).items():
        names = [name] if cls is Ablation else _names(name)
        default = repr(item.default).replace("'", '"')
        cells = ["<br>".join(f"`{one}`" for one in names), f"`{default}`", _meaning(setting), setting.change]
        yield f"| {' | '.join(cells[: len(columns)])} |"
    yield ""


def _names(name: str) -> list[str]:
    """The names of a setting in Python, on the command line and in the environment."""
    if name in FIXED:
        return [name]
    return [name, flag_of(name), *([] if name in REPEATED else [variable_of(name)])]


def _meaning(setting: Setting) -> str:
    """What a setting is, and what None means."""
    if setting.none_word:
        return f"{setting.help} `None` (`{setting.none_word}` on the command line) {setting.none}."
    return f"{setting.help} `None`: {setting.none}." if setting.none else setting.help


def main(arguments: Sequence[str]) -> None:
    """Write the page to the file that is named. Raises ConfigError without one."""
    if len(arguments) != 1:
        raise ConfigError(f"settings_page takes 1 argument, the file to write, and there are {len(arguments)}")
    Path(arguments[0]).write_text(page())


if __name__ == "__main__":
    main(sys.argv[1:])
