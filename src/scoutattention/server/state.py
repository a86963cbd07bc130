"""State that all requests share: the server's options, and the count of answers that it has accepted."""

import math
from collections import deque
from dataclasses import dataclass, field

from ..config import SamplingParams
from .errors import ApiError, refused

RECENT = 32
"""Number of the last answers whose mean duration is used for `Retry-After`."""


@dataclass(frozen=True)
class Options:
    """The server's configuration.

    model: the model's name in requests and responses.   defaults: sampling params of requests that do not set them.
    max_waiting: the length of the queue, in answers.   api_key: the key that requests must send; None needs no key.
    """

    model: str
    defaults: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=1.0))
    max_waiting: int = 256
    api_key: str | None = None


class Places:
    """Counts the answers that the server has accepted, running and waiting, and refuses those beyond the limit.

    most: the limit.   taken: accepted answers that have not ended.   closing: whether no more are accepted.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self._running = running
        self.most = running + waiting
        self.taken = 0
        self.closing = False
        self._recent: deque[float] = deque(maxlen=RECENT)

    def take(self, count: int, param: str | None = None) -> None:
        """Accept `count` answers. Raises ApiError with status 429 when the queue is full, and 503 when closing.

        param: the field of the request that says how many they are.
        """
        if self.closing:
            raise ApiError(503, "the server is closing: ask another one", headers={"Retry-After": "5"})
        if count > self.most:
            message = f"the request wants {count} answers, and the server takes {self.most} at once: ask for fewer"
            raise refused(message, param)
        if self.taken + count > self.most:
            seconds = self._wait()
            raise ApiError(
                429,
                f"the server has {self.taken} answers to make, of at most {self.most}: ask again in {seconds} s",
                headers={"Retry-After": str(seconds)},
            )
        self.taken += count

    def give_back(self, count: int, seconds: float) -> None:
        """Note that `count` answers have ended.   seconds: how long they took."""
        self.taken -= count
        self._recent.append(seconds)

    def _wait(self) -> int:
        """Estimated seconds until a running answer ends: the mean duration over the number that run at once."""
        mean = sum(self._recent) / len(self._recent) if self._recent else 1.0
        return min(60, max(1, math.ceil(mean / self._running)))
