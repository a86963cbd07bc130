"""Measures one request: its latencies and its tokens."""

import time
from collections.abc import Sequence

from .engine import Answer, Chunk
from .metrics import Metrics


class Meter:
    """Watches the answers of one request, and tells the metrics."""

    def __init__(self, metrics: Metrics, answers: Sequence[Answer], n: int) -> None:
        """answers: to each prompt, `n` of them."""
        self._metrics = metrics
        self._began = time.perf_counter()
        self._answers = answers
        self._n = n
        count = n * len(answers)
        self._first: list[float | None] = [None] * count
        self._last = [self._began] * count
        self._tokens = [0] * count
        self._reasons: list[str | None] = [None] * count
        for answer in answers:
            metrics.read_prompt(answer.prompt_tokens)

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.perf_counter() - self._began

    def watch(self, number: int, chunk: Chunk) -> None:
        """Take note of a piece of an answer."""
        now = time.perf_counter()
        if chunk.token_ids:
            if self._first[number] is None:
                self._first[number] = now
                self._metrics.observe("time_to_first_token_seconds", now - self._began)
                queued, read = self._answers[number // self._n].waits(number % self._n)
                self._metrics.observe("request_queue_time_seconds", queued)
                self._metrics.observe("request_prefill_time_seconds", read)
            else:
                self._metrics.observe("inter_token_latency_seconds", now - self._last[number])
            self._last[number] = now
            self._tokens[number] += len(chunk.token_ids)
            self._metrics.new_tokens.inc(len(chunk.token_ids))
        if chunk.finish_reason is not None:
            self._reasons[number] = chunk.finish_reason

    def end(self, reason: str) -> None:
        """The request has ended; answers that have no reason of their own ended for this one."""
        for number, first in enumerate(self._first):
            if first is not None:
                self._metrics.made(self._tokens[number], self._last[number] - first)
            self._metrics.observe("e2e_request_latency_seconds", self.seconds)
            self._metrics.finished(self._reasons[number] or reason)
