"""The timeline of an engine's first decode steps, recorded as it runs."""

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

from ...attention.dense import ResidentAttention
from ...attention.far import FarTimes, WorkerTransport
from ...attention.far_stream import Answered, StreamTransport
from ...attention.scout import Parts, ScoutAttention
from ...attention.step import Attend, Step
from ...engine.engine import Engine
from ...engine.runner import Decoded
from ...engine.scheduler import Sequence
from ...runtime.workers import Job
from ...trace.timeline import PROMPT, WAIT, Timeline
from ...types import Rope
from ..common.profiler import Profiler
from .build import Recorded, StepRecord, build_timeline
from .kernels import spans_of
from .watch import Watch, Watched

MOST = 64
"""Decode steps that are recorded; afterwards the engine runs as if nobody had watched."""
GAP_S = 1e-3
"""Pieces of prompts that are less than this apart are told as one."""


class Recorder:
    """Watches an engine from `begin` until `most` decode steps have ended, the engine is closed, or `end` is called.

    It replaces methods of single objects, so an engine that nobody watches pays nothing. On a GPU the profiler of
    PyTorch tells what the device does, in captured steps too.
    """

    def __init__(self, engine: Engine, most: int = MOST) -> None:
        self._engine = engine
        self._most = most
        self._watch = Watch()
        self._steps: list[StepRecord] = []
        self._prompts: list[Watched] = []
        self._answered: list[Answered] = []
        device = engine.store.device
        self._profiler = None if device.type == "cpu" else Profiler()

    def begin(self) -> None:
        """Watch from now on."""
        self._watch_engine()
        self._engine.workers.record_tasks(on=True)

    @property
    def steps(self) -> int:
        """Decode steps that were recorded."""
        return len(self._steps)

    def record(self, step: Callable[[], object]) -> None:
        """Take a step of the engine's runner that nobody asks the engine for."""
        self._step(step)()

    def end(self) -> None:
        """Stop recording. A second call does nothing."""
        self._watch.end()
        self._engine.workers.record_tasks(on=False)
        if self._profiler is not None:
            self._profiler.end()

    def timeline(self) -> Timeline:
        """The recorded timeline."""
        kernels = [] if self._profiler is None else spans_of(self._profiler.events)
        layers = self._engine.runner.decoder.shape.num_layers
        return build_timeline(Recorded(self._prompts, self._steps, kernels, layers, on_cpu=self._profiler is None))

    def _watch_engine(self) -> None:
        watch, engine, runner = self._watch, self._engine, self._engine.runner
        watch.replace(engine, "step", self._step)
        watch.replace(engine, "close", self._close)
        watch.replace(engine, "read_piece", self._prompt)
        watch.replace(runner, "decode", self._decode)
        for method, name in (("project", "project"), ("finish_layer", "mlp")):
            watch.watch(runner.decoder, method, name, of_layer=True)
        for method, name in (("forward", "norm"), ("logits", "head")):
            watch.watch(runner.decoder, method, name)
        attention = runner.attention
        watch.replace(attention, "begin", self._begin)
        for method, name in (("finish", "recall"), ("end", "read back")):
            watch.watch(attention, method, name)
        watch.watch(attention.exchange, "read", "read back")
        watch.watch(engine.store, "append", "append", of_layer=True)
        if isinstance(attention, ScoutAttention):
            self._watch_parts(attention.parts)
        elif isinstance(attention, ResidentAttention):
            watch.watch(engine.workers, "partial", "near")
            if attention.chooser is not None:
                watch.watch(attention.chooser, "judge", "choose", of_layer=True)

    def _watch_parts(self, parts: Parts) -> None:
        watch, transport = self._watch, parts.far.transport
        for look in ("scan", "judge"):
            watch.watch(parts.chooser, look, "choose", of_layer=True)
        watch.watch(parts.predictor, "predict", "scout", of_layer=True)
        for method in ("start", "split"):
            watch.watch(parts.far, method, "hand over", of_layer=True)
        for method, name in (("partial", "near"), ("join", "merge"), ("scout_error", "guard"), ("find_late", "guard")):
            watch.watch(parts.ops, method, name)
        watch.watch(parts.store.transfers, "copy", "copy")
        if isinstance(transport, WorkerTransport):
            watch.replace(self._engine.workers, "submit", self._submit)
            watch.replace(transport, "note", self._note)
        elif isinstance(transport, StreamTransport):
            watch.replace(transport, "times", partial(self._times, transport))

    def _step(self, step: Callable[[], Any]) -> Callable[[], Any]:
        """Record a step of an engine. Only the spans of decoding are kept."""

        def call() -> Any:  # noqa: ANN401  # what a step gives
            calls, start_s = self._watch.calls, perf_counter()
            calls.clear()
            self._answered.clear()
            try:
                return step()
            finally:
                tasks = self._engine.workers.take_tasks()
                if any(one[0] == "prepare" for one in calls):
                    calls.append(("schedule", None, start_s, perf_counter(), None))
                    self._steps.append(StepRecord(tuple(calls), tasks, tuple(self._answered)))
                if len(self._steps) >= self._most:
                    self.end()

        return call

    def _close(self, close: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            self.end()
            close()

        return call

    def _prompt(self, read_piece: Callable[[Sequence], None]) -> Callable[[Sequence], None]:
        """A piece of a prompt as one call, without those in it."""

        def call(sequence: Sequence) -> None:
            calls, start_s = self._watch.calls, perf_counter()
            before = len(calls)
            try:
                read_piece(sequence)
            finally:
                del calls[before:]
                read = Watched(PROMPT, None, start_s, perf_counter())
                calls.append(read)
                last = self._prompts[-1] if self._prompts else None
                if last is not None and start_s - last.end_s < GAP_S:
                    self._prompts[-1] = last._replace(end_s=read.end_s)
                else:
                    self._prompts.append(read)

        return call

    def _decode(self, decode: Callable[..., Decoded]) -> Callable[..., Decoded]:
        noted = self._watch.noted("prepare", decode)
        if self._profiler is None:
            return noted
        profiler = self._profiler

        def call(*args: Any, **options: Any) -> Decoded:  # noqa: ANN401  # see `Runner.decode`
            profiler.begin()
            decoded: Decoded = noted(*args, **options)
            return decoded

        return call

    def _begin(self, begin: Callable[..., Attend]) -> Callable[..., Attend]:
        noted = self._watch.noted("prepare", begin)

        def call(step: Step, rope: Rope) -> Attend:
            return self._watch.noted("attend", noted(step, rope), of_layer=True)

        return call

    def _submit(self, submit: Callable[..., Job]) -> Callable[..., Job]:
        def call(*args: Any, **options: Any) -> Job:  # noqa: ANN401  # see `Workers.submit`
            start_s = perf_counter()
            job = submit(*args, **options)
            self._watch.calls.append(("hand over", None, start_s, perf_counter(), job.number))
            return job

        return call

    def _note(self, note: Callable[[Job], None]) -> Callable[[Job], None]:
        """A job that was just waited for, as the wait."""

        def call(job: Job) -> None:
            end_s = perf_counter()
            self._watch.calls.append((WAIT, None, end_s - job.waited_s, end_s, job.number))
            note(job)

        return call

    def _times(self, transport: StreamTransport, times: Callable[[], FarTimes]) -> Callable[[], FarTimes]:
        def call() -> FarTimes:
            self._answered += transport.answered()
            return times()

        return call
