"""`scout generate`: answers one prompt, and streams the answer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError, PromptError
from .command import Call, load_action, read_choice, takes
from .flags import AsJson, Auto, Dense, HiddenTrace, Messages, Model, System, flag
from .inputs import Message, read_messages, read_prompt, with_system
from .output import check_writable
from .settings import PANELS, flag_of


@dataclass(frozen=True)
class GenerateFlags:
    """The flags of `scout generate`, beside the settings."""

    model: Model
    source: Annotated[str | None, typer.Argument(metavar="[-]", help="'-' reads the prompt from standard input.")] = (
        None
    )
    prompt: Annotated[str | None, flag("--prompt", "The prompt itself.", metavar="TEXT")] = None
    prompt_file: Annotated[Path | None, flag("--prompt-file", "A UTF-8 file with the prompt.", metavar="FILE")] = None
    messages: Messages = None
    system: System = None
    chat: Annotated[bool | None, flag("--chat/--no-chat", "Apply the chat template. Without it: if there is one.")] = (
        None
    )
    as_json: AsJson = False
    dense: Dense = False
    auto: Auto = False
    trace: HiddenTrace = None


@takes(GenerateFlags, *PANELS)
def generate(call: Call[GenerateFlags]) -> None:
    """Answer a prompt, and stream the answer. SCOUT_BUDGET=2048 in the environment means --budget 2048."""
    flags = call.flags
    check_writable("--trace", flags.trace)
    settings = read_choice(call)
    for name in ("logprobs", "prompt_logprobs"):
        if getattr(settings.params, name) is not None and not flags.as_json:
            flag = flag_of(name)
            raise ConfigError(f"{flag} needs --json, because log-probabilities are only in the JSON output: add --json")
    prompt = _prompt(flags)
    load_action("generate").generate(flags, prompt, settings)


def _prompt(flags: GenerateFlags) -> str | list[Message]:
    """The prompt, or the conversation. Raises PromptError, also where there is not exactly one of them."""
    if flags.messages is None and flags.system is None:
        return read_prompt(flags.prompt, flags.prompt_file, flags.source)
    if flags.chat is False:
        raise PromptError("--system and --messages need the chat template, so they exclude --no-chat")
    if flags.messages is None:
        text = read_prompt(flags.prompt, flags.prompt_file, flags.source)
        return with_system(flags.system, [{"role": "user", "content": text}])
    if (flags.prompt, flags.prompt_file, flags.source) != (None, None, None):
        raise PromptError("--messages is a whole conversation, so it excludes --prompt, --prompt-file and -")
    return with_system(flags.system, read_messages(flags.messages))
