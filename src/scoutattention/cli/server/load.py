"""`scout bench serve`: how many requests a server answers, and how long they wait."""

import math
from dataclasses import dataclass
from typing import Annotated

import typer

from ...errors import ConfigError
from ..command import Call, load_action, takes
from ..flags import AsJson, Plot, TextFiles, flag
from ..output import check_drawing
from .serve import refuse_without_server

MOST_REQUESTS = 100_000


@dataclass(frozen=True)
class LoadFlags:
    """The flags of `scout bench serve`."""

    target: Annotated[
        str, typer.Argument(help="The URL of a server, or a model to start one with.", show_default=False)
    ]
    rates: Annotated[
        str, flag("--rates", "Requests a second, at random times; 'inf' is all at once.", metavar="LIST")
    ] = "1,2,4"
    requests: Annotated[int, flag("--requests", "Requests at each rate.", min=1, max=MOST_REQUESTS)] = 32
    prompt_tokens: Annotated[int, flag("--prompt-tokens", "Tokens of a prompt, about.", min=1)] = 1024
    new_tokens: Annotated[int, flag("--new-tokens", "Tokens of an answer.", min=1)] = 64
    max_ttft: Annotated[float, flag("--max-ttft", "Seconds to the first token of a good answer, at most.")] = 2.0
    max_between: Annotated[
        float, flag("--max-between", "Seconds between tokens of a good answer, on average, at most.")
    ] = 0.2
    seed: Annotated[int, flag("--seed", "Of the times and the prompts.", hidden=True)] = 0
    api_key: Annotated[
        str | None,
        flag("--api-key", "The key of the server.", metavar="KEY", envvar="SCOUT_API_KEY", show_envvar=False),
    ] = None
    text: TextFiles = None
    as_json: AsJson = False
    plot: Plot = None


@takes(LoadFlags)
def serve(call: Call[LoadFlags]) -> None:
    """Send requests to an OpenAI-compatible server at random times, and time its answers.

    Every prompt is another piece of real text. Goodput counts the answers that were within both limits. A server that
    is started here has its settings from the environment, as SCOUT_BUDGET=2048. Exit code 1 if a request failed.
    """
    flags = call.flags
    rates = read_rates(flags.rates)
    for name, value in (("--max-ttft", flags.max_ttft), ("--max-between", flags.max_between)):
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{name}={value} is not a number of seconds above 0")
    check_drawing("--plot", flags.plot)
    if not is_url(flags.target):
        refuse_without_server()
    load_action("load").load(flags, rates)


def is_url(target: str) -> bool:
    """Whether a server is named, and not a model."""
    return target.startswith(("http://", "https://"))


def read_rates(text: str) -> tuple[float, ...]:
    """The different rates of a list as in 0.5,1,inf. Raises ConfigError where it is none."""
    try:
        rates = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        rates = ()
    if not rates or not all(rate > 0 for rate in rates):
        raise ConfigError(f"--rates={text!r} is not a list of numbers above 0, as in 0.5,1,inf")
    return rates
