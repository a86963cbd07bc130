"""What a load says of a server: throughput, waiting times, and how many requests were answered well."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .load import Load

SHARES = (50, 90, 99)
"""Percentiles."""


class Limits(NamedTuple):
    """When an answer is good: at most so many seconds to its first token, and between its tokens on average."""

    ttft_s: float
    between_s: float


class Percentiles(NamedTuple):
    """Half, nine tenths and 99 hundredths of some times were at most so long, in milliseconds; NaN of no times."""

    p50: float
    p90: float
    p99: float


class Result(NamedTuple):
    """A server at one rate.

    rate: requests a second that were sent.   requests_per_s: those that were answered.   failed: that were not.
    prompt_tokens: of a request, on average.   goodput: requests a second that were answered within the limits.
    ttft: to the first token of an answer.   between: between its pieces.   whole: to its end.
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
    """The numbers of one load."""
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
