"""`scout generate`: one prompt in, its answer out as it is made."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from tqdm import tqdm

from ..errors import ConfigError
from .output import check_folder, write_file
from .prompt import read_prompt
from .report import json_report, stats_table
from .settings import PANELS, Settings, flag_of, read_settings, with_settings

if TYPE_CHECKING:
    from ..engine.llm import LLM

Model = Annotated[str, typer.Argument(help="A folder, a .gguf file, a hub name, or 'smollm2'.", show_default=False)]
Source = Annotated[str | None, typer.Argument(metavar="[-]", help="'-' reads the prompt from standard input.")]
Prompt = Annotated[str | None, typer.Option("--prompt", help="The prompt itself.")]
PromptFile = Annotated[Path | None, typer.Option("--prompt-file", help="A UTF-8 file with the prompt.")]
Chat = Annotated[
    bool | None,
    typer.Option("--chat/--no-chat", help="Use the model's chat template. Without it, if there is one."),
]
Dense = Annotated[
    bool,
    typer.Option(
        "--dense", help="Full attention with everything on the device.", envvar="SCOUT_DENSE", show_envvar=False
    ),
]
Trace = Annotated[
    Path | None,
    typer.Option("--trace", help="Write where the time of every step and layer went to this file, for Perfetto."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show where an error comes from.", envvar="SCOUT_DEBUG", show_envvar=False),
]


def _load(model: str, settings: Settings) -> "LLM":
    # Inside, so that help and wrong arguments need not load PyTorch, which takes seconds.
    from ..engine.llm import LLM  # noqa: PLC0415

    errors = Console(stderr=True)
    with errors.status(f"Loading {model}") if errors.is_terminal else nullcontext():
        return LLM(model, scout=settings.scout, **asdict(settings.engine))


def _stream(llm: "LLM", prompt: str, settings: Settings, *, chat: bool | None, echo: bool) -> tuple[str, list[int]]:
    """The answer's text and token ids; `echo` writes the text to stdout as it comes."""
    texts: list[str] = []
    token_ids: list[int] = []
    form = "{desc} {percentage:3.0f}% {bar} {elapsed}"
    with tqdm(desc="Reading the prompt", bar_format=form, leave=False, disable=not sys.stderr.isatty()) as bar:

        def on_prompt(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        for chunk in llm.stream(prompt, settings.params, chat=chat, on_prompt=on_prompt):
            bar.close()
            texts.append(chunk.text)
            token_ids.extend(chunk.token_ids)
            if echo:
                print(chunk.text, end="", flush=True)
    if echo:
        print(flush=True)
    return "".join(texts), token_ids


@contextmanager
def _traced(llm: "LLM", file: Path | None) -> Iterator[None]:
    """Watch the engine, and write what was seen to `file`, if there is one."""
    if file is None:
        yield
        return
    from ..bench.decode.stages import watch_engine  # noqa: PLC0415
    from ..bench.decode.trace import trace  # noqa: PLC0415

    stages = watch_engine(llm.engine)
    try:
        yield
    finally:
        write_file(file, trace({"scout": stages.spans}).encode())


def _reject_dense_with(context: typer.Context, *names: str) -> None:
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ConfigError(f"--dense attends to everything on the device, so it excludes {flag_of(name)}")


@with_settings(*PANELS)
def generate(
    context: typer.Context,
    model: Model,
    source: Source = None,
    *,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    chat: Chat = None,
    dense: Dense = False,
    trace: Trace = None,
    as_json: AsJson = False,
    debug: Debug = False,
    **flags: object,
) -> None:
    """Answer a prompt, writing the text to stdout as it is made.

    Settings can come from the environment too: SCOUT_BUDGET=2048 is --budget 2048.
    """
    context.obj.debug = debug
    if dense:
        _reject_dense_with(context, "budget", "device_memory")
    if trace is not None:
        check_folder("--trace", trace)
    text = read_prompt(prompt, prompt_file, source)
    settings = read_settings(flags, dense=dense)
    llm = _load(model, settings)
    with _traced(llm, trace):
        answer = _stream(llm, text, settings, chat=chat, echo=not as_json)
    if as_json:
        print(json_report(llm, settings, answer), flush=True)
    else:
        Console(stderr=not sys.stdout.isatty()).print(stats_table(llm.stats()))
