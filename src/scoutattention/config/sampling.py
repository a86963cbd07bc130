"""A request: how its tokens are drawn, and when it ends."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from ..errors import ConfigError
from .fields import Checked, setting

LEAST_FLOAT, MOST_FLOAT = 2.0**-126, 3.4028234e38
"""The smallest and the largest number that float32 holds with all its digits."""
SEEDS = range(-(2**63), 2**64)
"""What `torch.Generator.manual_seed` takes."""

MOST_BIAS = 100
"""Of a logit, as at OpenAI."""


class RequestChecks(Checked):
    """Normalises and checks the values of `SamplingParams`."""

    def __post_init__(self) -> None:
        values: Any = self
        object.__setattr__(self, "stop", _texts(values.stop))
        object.__setattr__(self, "logit_bias", _biases(values.logit_bias))
        for name in ("max_tokens", "min_tokens", "top_k", "seed", "logprobs", "prompt_logprobs", "n"):
            _plain(self, name, Integral)
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            _plain(self, name, Real)
        super().__post_init__()
        if not 0.0 < values.top_p <= 1.0:
            raise ConfigError(f"top_p={values.top_p} is not in (0, 1]")
        for name in ("temperature", "top_p", "min_p"):
            value = getattr(self, name)
            if not (value == 0 or LEAST_FLOAT <= value <= MOST_FLOAT):
                raise ConfigError(
                    f"{name}={value} is beyond what float32 holds, {LEAST_FLOAT:.3g} to {MOST_FLOAT:.3g}: "
                    "give a number of that range"
                )
        if values.seed is not None and values.seed not in SEEDS:
            raise ConfigError(f"seed={values.seed} is not from {SEEDS[0]} to {SEEDS[-1]}")
        if values.min_tokens > values.max_tokens:
            raise ConfigError(
                f"min_tokens={values.min_tokens} is above max_tokens={values.max_tokens}: lower min_tokens, or raise "
                "max_tokens"
            )
        if values.min_tokens and values.json_schema is not None:
            raise ConfigError(
                f"min_tokens={values.min_tokens} with json_schema could ask for more than the schema allows: leave "
                "min_tokens out, and say in the schema how long its parts are"
            )
        if values.n > 1 and values.temperature == 0:
            raise ConfigError(
                f"n={values.n} answers of temperature 0 would be the same: raise temperature, or set n to 1"
            )


@dataclass(frozen=True)
class SamplingParams(RequestChecks):
    """How one request is sampled. Raises ConfigError if a value has the wrong type or is out of range.

    stop: one string, several, or None; stored as a tuple.
    """

    max_tokens: int = setting(
        128,
        "Most new tokens; 0 only reads the prompt.",
        change="Set it to the longest answer you want.",
        least=0,
    )
    temperature: float = setting(
        0.0, "Sampling temperature; 0 is greedy decoding.", change="Raise it for variety.", least=0
    )
    top_p: float = setting(
        1.0,
        "Sample from the most likely tokens whose probabilities add up to this (nucleus sampling).",
        change="Lower it to 0.9 to leave out unlikely tokens.",
        advanced=True,
    )
    top_k: int = setting(
        0,
        "Sample from this many of the most likely tokens; 0 or -1 is all tokens.",
        change="Set it to the value of the model card, often 20 to 50.",
        least=-1,
        most=2**31 - 1,
        advanced=True,
    )
    min_p: float = setting(
        0.0,
        "Sample from tokens with at least this fraction of the most likely token's probability.",
        change="Set it between 0.05 and 0.1 with a high temperature.",
        least=0,
        most=1,
        advanced=True,
    )
    repetition_penalty: float = setting(
        1.0,
        "Divides positive logits of tokens in the prompt or the answer by this, and multiplies negative logits.",
        change="Raise it to 1.1 if the model repeats itself.",
        least=0.01,
        most=100,
        advanced=True,
    )
    presence_penalty: float = setting(
        0.0,
        "Subtracted from the logits of tokens that are already in the answer.",
        change="Raise it to 0.5 for new subjects.",
        least=-2,
        most=2,
        advanced=True,
    )
    frequency_penalty: float = setting(
        0.0,
        "Subtracted from a token's logit for each time that the token is already in the answer.",
        change="Raise it to 0.5 if the model repeats words.",
        least=-2,
        most=2,
        advanced=True,
    )
    seed: int | None = setting(
        None,
        "Seed of the random numbers.",
        change="Set it to get the same answer again.",
        none="another answer each time",
        advanced=True,
    )
    stop: str | Iterable[str] | None = setting(
        (),
        "Strings that end the answer, and are not part of it.",
        change="Set it to the end marker of your format.",
        advanced=True,
    )
    ignore_eos: bool = setting(
        False,
        "Continue after the model's end-of-sequence token.",
        change="Set it for benchmarks of fixed length.",
        advanced=True,
    )
    logprobs: int | None = setting(
        None,
        "Number of most likely tokens whose log-probabilities are returned at each position, besides the token's own. "
        "They are from before penalties and temperature.",
        change="Set it to see how sure the model is.",
        none="none are returned",
        least=0,
        advanced=True,
    )
    prompt_logprobs: int | None = setting(
        None,
        "Number of likeliest tokens that are given for each token of the prompt but the first, with their "
        "log-probabilities and that of the token itself. The prompt is read whole, with full attention: prompts "
        "that were kept do not serve it, and it is not kept.",
        change="Set it to score texts; max_tokens=0 makes no answer.",
        none="none are given",
        least=0,
        advanced=True,
    )
    cache_salt: str = setting(
        "",
        "Requests share cached prefixes only with requests of the same salt.",
        change="Give each user another salt if users must not learn from response times what others have asked.",
        advanced=True,
    )
    n: int = setting(
        1,
        "Number of answers to each prompt.",
        change="Raise it to choose among answers. It needs a temperature above 0.",
        least=1,
        most=10_000,
        advanced=True,
    )
    min_tokens: int = setting(
        0,
        "Smallest number of new tokens. Until then no end-of-sequence token is drawn, and no stop string counts.",
        change="Raise it if answers are too short.",
        least=0,
        advanced=True,
    )
    logit_bias: Mapping[int, float] | None = setting(
        None,
        "Numbers from -100 to 100, added to the logits of token ids. -100 practically forbids a token.",
        change="Set it to forbid tokens, or to choose among a few.",
        none="nothing is added",
        advanced=True,
    )
    json_schema: str | None = setting(
        None,
        "A JSON schema, as a string. The answer conforms to it, unless max_tokens cuts the answer. Needs "
        "llguidance, which the extra [json] of scout-attention installs.",
        change='Set it if a program reads the answer; "{}" is any JSON.',
        none="the answer is free text",
        advanced=True,
    )

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return tuple(self.stop or ())


def _texts(stop: object) -> tuple[str, ...]:
    """Stop strings from one text, several, or None."""
    wanted = "give a text, or a list of texts"
    if stop is None or isinstance(stop, str):
        texts: tuple[object, ...] = () if stop is None else (stop,)
    elif isinstance(stop, Iterable) and not isinstance(stop, bytes | bytearray | dict):
        texts = tuple(stop)
    else:
        raise ConfigError(f"stop={stop!r} is of type {type(stop).__name__}: {wanted}")
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(f"stop has {text!r}, which is of type {type(text).__name__}: {wanted}")
        if not text:
            raise ConfigError("stop has an empty text, which would end every answer at once: leave it out")
    return tuple(text for text in texts if isinstance(text, str))


def _biases(given: object) -> dict[int, float] | None:
    """A bias for each token id; JSON has the ids as texts."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ConfigError(f"logit_bias is of type {type(given).__name__}: give a mapping of token ids to numbers")
    found = {}
    for token, bias in given.items():
        digits = isinstance(token, str) and token.isascii() and token.isdigit()
        if not digits and (isinstance(token, bool) or not isinstance(token, Integral) or token < 0):
            raise ConfigError(f"logit_bias has {token!r} as a token id: give whole numbers from 0")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -MOST_BIAS <= bias <= MOST_BIAS:
            raise ConfigError(
                f"logit_bias has {bias!r} for token {token}: give a number from -{MOST_BIAS} to {MOST_BIAS}"
            )
        found[int(token)] = float(bias)
    return found


def _plain(params: RequestChecks, name: str, kind: type[Integral] | type[Real]) -> None:
    """Turn another library's number into Python's own; what is none is left to the checks of types."""
    value = getattr(params, name)
    if not isinstance(value, kind) or isinstance(value, bool):
        return
    try:
        number = int(value) if isinstance(value, Integral) and kind is Integral else float(value)
    except OverflowError:
        number = math.inf
    object.__setattr__(params, name, number)
