"""Where a step's time goes: the engine's own parts, watched from outside while they work."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from ..attention.base import Attend
from ..attention.scout import ScoutAttention
from ..engine.engine import Engine
from ..kernels.cpu import Job
from ..types import Partial
from .decode_job import Span

P = ParamSpec("P")
R = TypeVar("R")

ATTENTION = "attention, the rest"


class Stages:
    """The spans of what is watched, inner ones before the ones around them.

    Watching replaces methods of single objects, so an engine that nobody watches pays nothing.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def timed(self, stage: str, function: Callable[P, R], then: Callable[[R], R] | None = None) -> Callable[P, R]:
        """The same function, each call a span; `then` is applied to what it returns."""

        def call(*args: P.args, **options: P.kwargs) -> R:
            start = time.perf_counter()
            result = function(*args, **options)
            self.spans.append(Span(stage, start, time.perf_counter() - start))
            return result if then is None else then(result)

        return call

    def watch(self, thing: object, method: str, stage: str, then: Callable[[Any], Any] | None = None) -> None:
        """Make each call of one object's method a span."""
        setattr(thing, method, self.timed(stage, getattr(thing, method), then))


def watch_engine(engine: Engine) -> Stages:
    """The stages of an engine's steps, from now on."""
    stages, runner = Stages(), engine.runner

    def watch_attend(attend: Attend) -> Attend:
        return stages.timed(ATTENTION, attend)

    def watch_job(job: Job) -> Job:
        def note(far: Partial) -> Partial:
            stages.spans.append(Span("far attention", job.started_s, job.ran_s, thread="workers"))
            return far

        stages.watch(job, "wait", "far wait", note)
        return job

    stages.watch(engine, "step", "sampling and the rest")
    stages.watch(runner.decoder, "forward", "linear layers")
    stages.watch(runner.decoder, "logits", "output head")
    stages.watch(runner.attention, "begin", ATTENTION, watch_attend)
    stages.watch(runner.attention, "end", "recall")
    stages.watch(engine.workers, "partial", "near attention")
    stages.watch(engine.workers, "submit", "far hand-over", watch_job)
    stages.watch(engine.store.pages.digests, "score", "digest scores")
    if isinstance(runner.attention, ScoutAttention):
        stages.watch(runner.attention.predictor, "predict", "scouts")
        stages.watch(runner.attention.chooser, "choose", "choice")
    return stages


def exclusive(spans: Iterable[Span]) -> dict[str, float]:
    """Seconds of each of the main thread's stages, without the stages inside it, most first."""
    total: dict[str, float] = defaultdict(float)
    inside: list[Span] = []  # spans that no later one contains yet
    for span in spans:
        if span.thread != "main":
            continue
        total[span.stage] += span.seconds
        while inside and inside[-1].start >= span.start:
            total[span.stage] -= inside.pop().seconds
        inside.append(span)
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def trace(spans: Mapping[str, Iterable[Span]]) -> str:
    """Spans of several processes as JSON that Perfetto and Chrome show, a track for each thread; in microseconds."""
    events = [
        {"name": stage, "ph": "X", "pid": process, "tid": thread, "ts": start * 1e6, "dur": seconds * 1e6}
        for process, parts in spans.items()
        for stage, start, seconds, thread in parts
    ]
    return json.dumps({"traceEvents": events})
