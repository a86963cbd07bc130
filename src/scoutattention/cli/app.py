"""The commands of `scout`, and what becomes of their errors."""

import json
import os
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Annotated

import typer
from rich.text import Text

from ..errors import ScoutError
from ..hardware.doctor import cache_folder, examine
from ..hardware.host import Host
from .bench import decode, gpu, kernels
from .calibrate import calibrate
from .chat import chat
from .command import load_action
from .fidelity import fidelity, weights
from .generate import generate
from .output import PlainTable, show
from .planner.plan import plan
from .retrieval import retrieval
from .server.load import serve as bench_serve
from .server.serve import serve
from .settings import refuse_old_flag, refuse_wrong_environment
from .shell import named_faults, tell
from .trace import trace

COLOURS = {"ok": "green", "note": "yellow", "problem": "red"}

HELP_FLAGS = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="scout",
    help="Decode long contexts with the KV cache in host memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP_FLAGS,
)
GROUPS = {
    "eval": ("Measure accuracy: of the method, and of quantised weights.", (fidelity, retrieval, weights)),
    "bench": ("Measure speed on this machine.", (decode, gpu, kernels, bench_serve)),
}
app.command()(generate)
app.command()(chat)
app.command()(serve)
app.command()(calibrate)
app.command()(plan)
app.command()(trace)
for _name, (_help, _commands) in GROUPS.items():
    _group = typer.Typer(help=_help, no_args_is_help=True, context_settings=HELP_FLAGS)
    for _command in _commands:
        _group.command()(_command)
    app.add_typer(_group, name=_name)


@dataclass
class Run:
    """What a command tells the error handler about itself."""

    debug: bool = False


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"scout {version('scout-attention')}")
        raise typer.Exit


@app.callback()
def _common(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def doctor(
    model: Annotated[str | None, typer.Argument(help="A model, to see how much memory it takes.")] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure how fast memory and cores are, and store that for `scout plan`."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Check this machine, and say what to change. With a model, also say how much memory the model takes.

    Exit code 1 if models cannot run.
    """
    checks = examine(Host(), os.environ)
    if measure:
        checks += load_action("doctor").measure_computer(cache_folder(os.environ))
    if model is not None:
        checks += load_action("doctor").check_model(model, Host())
    if as_json:
        print(json.dumps({check.name: asdict(check) for check in checks}, indent=2), flush=True)
    else:
        table = PlainTable("", "What", "Value", "What follows", keys=2)
        for check in checks:
            table.add_row(Text(check.status, COLOURS[check.status]), check.name, check.value, check.advice)
        show(table)
    if any(check.status == "problem" for check in checks):
        raise typer.Exit(1)


TYPERS_WORDS = {
    "Value error, ": "",
    "Input should be a valid integer, unable to parse string as an integer": "it is not a whole number",
    "Input should be a valid number, unable to parse string as a number": "it is not a number",
    "Input should be": "it should be",
}
"""What Typer says of a value, and what is said instead."""


def _plainly(error: typer.TyperException, args: Sequence[str]) -> str:
    """Typer's message in plain words, with the variable of the environment that a value came from."""
    message = error.format_message()
    for words, plain in TYPERS_WORDS.items():
        message = message.replace(words, plain)
    option = getattr(error, "param", None)
    variable = getattr(option, "envvar", None)
    if isinstance(variable, str) and variable in os.environ:
        flags = tuple(getattr(option, "opts", ()))
        if not any(arg.startswith(flags) for arg in args):
            message = f"{message.rstrip('.')}; it comes from {variable} in the environment"
    return message


def _old_flag(error: Exception) -> str:
    """What to write instead of the flag that a command does not have, if earlier versions had it."""
    try:
        refuse_old_flag(getattr(error, "option_name", ""))
    except ScoutError as old:
        return str(old)
    return ""


def run(args: Sequence[str]) -> int:
    """Run one command and return its exit code; every expected error becomes one line on stderr.

    Raises KeyboardInterrupt.
    """
    state = Run()
    try:
        refuse_wrong_environment(os.environ)
        with named_faults():
            code = app(list(args), prog_name="scout", standalone_mode=False, obj=state)
    except typer.TyperException as error:
        message = _old_flag(error) or _plainly(error, args)
        if message:  # empty where the help was printed instead
            tell(message)
        return error.exit_code
    except ScoutError as error:
        if state.debug:
            traceback.print_exc()
        tell(str(error))
        return 2
    if code == 130:  # Typer's word for it
        raise KeyboardInterrupt
    return code or 0
