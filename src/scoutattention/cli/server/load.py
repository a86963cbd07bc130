"""`scout bench serve`: how many requests a server answers, and how long they wait."""

import math
from dataclasses import dataclass
from typing import Annotated

import typer

from ...bench.serve.results import Limits
from ...config import EngineConfig, ScoutConfig
from ...errors import ConfigError
from ..command import Call, load_action, takes
from ..flags import AsJson, Plot, TextFiles, flag
from ..output import check_drawing
from .serve import MaxNumSeqs, refuse_without_server

MOST_REQUESTS = 100_000


@dataclass(frozen=True)
class LoadFlags:
    """The flags of `scout bench serve`, beside the settings of a server that it starts."""

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
    max_num_seqs: MaxNumSeqs = EngineConfig().max_num_seqs
    text: TextFiles = None
    as_json: AsJson = False
    plot: Plot = None


@takes(LoadFlags, ScoutConfig, EngineConfig)
def serve(call: Call[LoadFlags]) -> None:
    """Send requests to an OpenAI-compatible server at random times, and time its answers.

    Every prompt is another piece of real text. Goodput counts the answers that were within both limits.
    Exit code 1 if a request failed.
    """
    flags = call.flags
    rates = read_rates(flags.rates)
    limits = Limits(_positive("--max-ttft", flags.max_ttft), _positive("--max-between", flags.max_between))
    check_drawing("--plot", flags.plot)
    remote = flags.target.startswith(("http://", "https://"))
    settings = [name for name in call.given if name in call.settings or name == "max_num_seqs"]
    if remote and settings:
        raise ConfigError(f"--{settings[0].replace('_', '-')} is for a server that is started here, and this one runs")
    if not remote:
        refuse_without_server()
    given = {name: call.settings.get(name, flags.max_num_seqs) for name in settings}
    load_action("load").load(flags, rates, limits, None if remote else given)


def read_rates(text: str) -> tuple[float, ...]:
    """The different rates of a list as in 0.5,1,inf. Raises ConfigError where it is none."""
    try:
        rates = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        rates = ()
    if not rates or not all(rate > 0 for rate in rates):
        raise ConfigError(f"--rates={text!r} is not a list of numbers above 0, as in 0.5,1,inf")
    return rates


def _positive(name: str, value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{name}={value} is not a number of seconds above 0")
    return value
