"""Results of a load: throughput, latencies, and goodput."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .load import Load

SHARES = (50, 90, 99)
"""The percentiles that are reported."""


class Limits(NamedTuple):
    """The limits of goodput, in seconds.

    ttft_s: time to the first token, at most.   between_s: mean time between tokens, at most.
    """

    ttft_s: float
    between_s: float


class Percentiles(NamedTuple):
    """The 50th, 90th and 99th percentile of some times, in milliseconds; NaN where there are none."""

    p50: float
    p90: float
    p99: float


class Result(NamedTuple):
    """The result at one request rate.

    rate: requests sent per second.   requests, failed: how many were sent, and how many of them failed.
    seconds: from the first request to the last answer.   prompt_tokens: mean tokens of a prompt.
    requests_per_s, tokens_per_s: answered requests and new tokens per second.
    goodput: requests per second that were answered within the limits.
    ttft: time to first token.   between: time between the pieces of an answer.   whole: time to an answer's end.
    errors: the different error messages.
    """

    rate: float
    requests: int
    failed: int
    seconds: float
    prompt_tokens: float
    requests_per_s: float
    tokens_per_s: float
    goodput: float
    ttft: Percentiles
    between: Percentiles
    whole: Percentiles
    errors: tuple[str, ...]


def result(load: Load, limits: Limits) -> Result:
    """The result of one load."""
    right = [one for one in load.asked if one.error is None]
    good = [
        one
        for one in right
        if one.ttft_s <= limits.ttft_s and (one.whole_s - one.ttft_s) / max(1, one.new_tokens - 1) <= limits.between_s
    ]
    return Result(
        rate=load.rate,
        requests=len(load.asked),
        failed=len(load.asked) - len(right),
        seconds=load.seconds,
        prompt_tokens=sum(one.prompt_tokens for one in right) / max(1, len(right)),
        requests_per_s=len(right) / load.seconds,
        tokens_per_s=sum(one.new_tokens for one in right) / load.seconds,
        goodput=len(good) / load.seconds,
        ttft=_percentiles([one.ttft_s for one in right]),
        between=_percentiles([gap for one in right for gap in one.gaps_s]),
        whole=_percentiles([one.whole_s for one in right]),
        errors=tuple(dict.fromkeys(one.error for one in load.asked if one.error is not None)),
    )


def _percentiles(seconds: Sequence[float]) -> Percentiles:
    return Percentiles(*(1e3 * float(np.percentile(seconds, share)) if seconds else float("nan") for share in SHARES))
