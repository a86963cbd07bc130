"""What all requests of a server share: the model's name, the places, and whether it is closing."""

import math
from collections import deque
from dataclasses import dataclass, field

from ..config import SamplingParams
from .errors import ApiError, refused

RECENT = 32
"""Answers whose duration says how long a place takes to become free."""


@dataclass(frozen=True)
class Options:
    """What the person who runs a server decides.

    model: the name that requests give.   defaults: what a request does not say.
    max_waiting: answers that wait, beyond those that run.   api_key: what requests must bear, or None.
    """

    model: str
    defaults: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=1.0))
    max_waiting: int = 256
    api_key: str | None = None


class Places:
    """The answers that a server takes at once: those that run, and those that wait."""

    def __init__(self, running: int, waiting: int) -> None:
        self._running = running
        self.most = running + waiting
        self.taken = 0
        self.closing = False
        self._recent: deque[float] = deque(maxlen=RECENT)

    def take(self, count: int) -> None:
        """Take so many places. Raises ApiError where there are not enough, or the server is closing."""
        if self.closing:
            raise ApiError(503, "the server is closing: ask another one", headers={"Retry-After": "5"})
        if count > self.most:
            raise refused(f"the request wants {count} answers, and the server takes {self.most} at once: ask for fewer")
        if self.taken + count > self.most:
            seconds = self._wait()
            raise ApiError(
                429,
                f"the server has {self.taken} answers to make, of at most {self.most}: ask again in {seconds} s",
                headers={"Retry-After": str(seconds)},
            )
        self.taken += count

    def give_back(self, count: int, seconds: float) -> None:
        """Free places.   seconds: for which they were taken."""
        self.taken -= count
        self._recent.append(seconds)

    def _wait(self) -> int:
        """Seconds until a place is free, if answers take as long as the last ones."""
        mean = sum(self._recent) / len(self._recent) if self._recent else 1.0
        return min(60, max(1, math.ceil(mean / self._running)))
