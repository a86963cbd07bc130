"""Where a step's time goes: the engine's own parts, watched from outside while they work."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ParamSpec, TypeVar

from ...attention.dense import ResidentAttention
from ...attention.scout import ScoutAttention
from ...attention.step import Attend
from ...engine.engine import Engine
from ...models.decoder import Decoder
from ...runtime.workers import Job
from ...types import Partial
from .job import Span

P = ParamSpec("P")
R = TypeVar("R")


class Stages:
    """The spans of what is watched, inner ones before the ones around them.

    Watching replaces methods of single objects, so an engine that nobody watches pays nothing.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._layers: list[int | None] = [None]  # of the calls that are under way

    def timed(
        self,
        stage: str,
        function: Callable[P, R],
        then: Callable[[R], R] | None = None,
        *,
        of_layer: bool = False,
    ) -> Callable[P, R]:
        """The same function, each call a span; `then` is applied to what it returns.

        of_layer: its first argument is the layer it works for; else that is the layer of the call around it.
        """

        def call(*args: P.args, **options: P.kwargs) -> R:
            layer = args[0] if of_layer else self._layers[-1]
            assert layer is None or isinstance(layer, int)
            self._layers.append(layer)
            start = time.perf_counter()
            try:
                result = function(*args, **options)
            finally:
                self.spans.append(Span(stage, start, time.perf_counter() - start, layer=layer))
                self._layers.pop()
            return result if then is None else then(result)

        return call

    def watch(
        self,
        thing: object,
        method: str,
        stage: str,
        then: Callable[[Any], Any] | None = None,
        *,
        of_layer: bool = False,
    ) -> None:
        """Make each call of one object's method a span."""
        setattr(thing, method, self.timed(stage, getattr(thing, method), then, of_layer=of_layer))

    def watch_layers(self, decoder: Decoder) -> None:
        """Make what a decoder computes for a layer before and after its attention a span, and the whole layer one."""
        began = 0.0

        def begin(projected: R) -> R:
            nonlocal began
            began = self.spans[-1].start
            return projected

        def end(updated: R) -> R:
            last = self.spans[-1]
            self.spans.append(Span("layer", began, last.start + last.seconds - began, layer=last.layer))
            return updated

        self.watch(decoder, "project", "projections", begin, of_layer=True)
        self.watch(decoder, "update", "output and MLP", end, of_layer=True)

    def keep_outer(self, result: R) -> R:
        """Forget the spans inside the last one; returns `result`."""
        outer = self.spans.pop()
        while self.spans and self.spans[-1].start >= outer.start:
            self.spans.pop()
        self.spans.append(outer)
        return result

    def rename_inner(self, result: R, old: str, new: str) -> R:
        """Give spans of one name inside the last one another; returns `result`."""
        outer = self.spans[-1]
        for place in range(len(self.spans) - 2, -1, -1):
            if self.spans[place].start < outer.start:
                break
            if self.spans[place].stage == old:
                self.spans[place] = self.spans[place]._replace(stage=new)
        return result


def watch_engine(engine: Engine) -> Stages:
    """The stages of an engine's steps, from now on; reading a prompt is one of them."""
    stages, runner = Stages(), engine.runner

    def watch_attend(attend: Attend) -> Attend:
        return stages.timed("attention", attend, of_layer=True)

    def watch_job(job: Job) -> Job:
        def note(far: Partial) -> Partial:
            if job.ran_s > 0:  # else it had nothing to do
                layer = stages.spans[-1].layer
                stages.spans.append(Span("far attention", job.started_s, job.ran_s, thread="workers", layer=layer))
            return far

        stages.watch(job, "wait", "far wait", note)
        return job

    stages.watch(engine, "step", "step")
    stages.watch(engine, "read_piece", "prompt", stages.keep_outer)
    stages.watch(runner.decoder, "forward", "decoder")
    stages.watch_layers(runner.decoder)
    stages.watch(runner.decoder, "logits", "output head")
    stages.watch(runner.attention, "prepare", "step decisions")
    stages.watch(runner.attention, "begin", "step decisions", watch_attend)
    stages.watch(runner.attention, "finish", "recall")
    for decision in ("start", "count", "end"):
        stages.watch(runner.attention, decision, "step decisions")
    stages.watch(engine.workers, "partial", "near attention")
    for kind in engine.cache.digests.kinds:
        stages.watch(kind, "score", "digest scores", stages.keep_outer)  # even if they attend
    if isinstance(runner.attention, ResidentAttention) and runner.attention.chooser is not None:
        stages.watch(runner.attention.chooser, "judge", "choice", of_layer=True)
    if isinstance(runner.attention, ScoutAttention):
        parts = runner.attention.parts
        for look in ("scan", "judge"):
            stages.watch(parts.chooser, look, "choice", of_layer=True)
        stages.watch(parts.predictor, "predict", "scout", of_layer=True)
        stages.watch(parts.far, "start", "far hand-over", of_layer=True)
        stages.watch(engine.workers, "submit", "queueing", watch_job)
        late = partial(stages.rename_inner, old="near attention", new="late attention")
        stages.watch(parts.ops, "join", "merge", late)
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
