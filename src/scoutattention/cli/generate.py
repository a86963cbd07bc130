"""`scout generate`: one prompt in, its answer out as it is made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from .command import Call, load_action, takes
from .flags import AsJson, Model, Trace, flag
from .inputs import read_prompt
from .output import check_writable
from .settings import PANELS, flag_of, read_settings


@dataclass(frozen=True)
class GenerateFlags:
    """The flags of `scout generate`, beside the settings."""

    model: Model
    source: Annotated[str | None, typer.Argument(metavar="[-]", help="'-' reads the prompt from standard input.")] = (
        None
    )
    prompt: Annotated[str | None, flag("--prompt", "The prompt itself.", metavar="TEXT")] = None
    prompt_file: Annotated[Path | None, flag("--prompt-file", "A UTF-8 file with the prompt.", metavar="FILE")] = None
    chat: Annotated[
        bool | None, flag("--chat/--no-chat", "Use the chat template. Without it: if the model has one.")
    ] = None
    dense: Annotated[
        bool, flag("--dense", "Full attention with everything on the device.", envvar="SCOUT_DENSE", show_envvar=False)
    ] = False
    trace: Trace = None
    as_json: AsJson = False


@takes(GenerateFlags, *PANELS)
def generate(call: Call[GenerateFlags]) -> None:
    """Answer a prompt, writing the text to stdout as it is made.

    A setting can come from the environment too: SCOUT_BUDGET=2048 is --budget 2048.
    """
    flags = call.flags
    for name in ("budget", "device_memory"):
        if flags.dense and name in call.given:
            raise ConfigError(f"--dense attends to everything on the device, so it excludes {flag_of(name)}")
    check_writable("--trace", flags.trace)
    prompt = read_prompt(flags.prompt, flags.prompt_file, flags.source)
    load_action("generate").generate(flags, prompt, read_settings(call.settings, dense=flags.dense))
