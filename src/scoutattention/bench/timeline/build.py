"""What was recorded of an engine as a timeline.

Calls nest, and spans of a lane do not: each moment belongs to the innermost call.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ...attention.far_stream import Answered
from ...runtime.workers import OTHER_THREAD, TaskTimes
from ...trace.span import Span
from ...trace.timeline import DECODE, DEVICE, FAR, HOST, LINK, PROMPT, SCHEDULER, WAIT, Arrow, Timeline, worker
from .kernels import with_layers, with_waits
from .watch import Noted, Watched

COPY = "copy"
INSIDE = {("merge", "near"): "guard"}
"""What a stage is called inside another one."""


class Piece(NamedTuple):
    """A part of a call in which no inner one was under way."""

    name: str
    layer: int | None
    start_s: float
    end_s: float


class StepRecord(NamedTuple):
    """A step that decoded.

    calls: of the engine's thread, the fields of `Watched`.   tasks: of the worker threads.
    answered: calls that a GPU made.
    """

    calls: Sequence[Noted]
    tasks: Sequence[TaskTimes]
    answered: Sequence[Answered]


class Recorded(NamedTuple):
    """A recording.   prompts: when prompts were read.   kernels: what a GPU did.   on_cpu: whether there is none."""

    prompts: Sequence[Watched]
    steps: Sequence[StepRecord]
    kernels: Sequence[Span]
    layers: int
    on_cpu: bool


def build_timeline(recorded: Recorded) -> Timeline:
    """The timeline of a recording."""
    lane = DEVICE if recorded.on_cpu else HOST
    spans = [
        Span(name, PROMPT, None, call.start_s, call.end_s) for call in recorded.prompts for name in (SCHEDULER, lane)
    ]
    arrows: list[Arrow] = []
    for step in recorded.steps:
        one = _Step(step, lane, on_cpu=recorded.on_cpu)
        within = (span for span in recorded.kernels if one.frame.start_s <= span.start_s < one.frame.end_s)
        kernels = with_waits(with_layers(within, recorded.layers), one.waited_s())
        workers = list(one.workers())
        spans += [one.frame, *one.thread(), *kernels, *(span for span, _ in workers)]
        arrows += one.arrows(workers, kernels)
    return Timeline(tuple(spans), tuple(arrows))


class _Step:
    """A step that decoded.   frame: its span.   lane: of the engine's thread."""

    def __init__(self, record: StepRecord, lane: str, *, on_cpu: bool) -> None:
        self._record = record
        self._lane = lane
        self._on_cpu = on_cpu
        self._calls = [Watched(*noted) for noted in record.calls]
        flat = pieces(self._calls)
        self._pieces = _decoding(flat)
        self._starts = [piece.start_s for piece in self._pieces]
        self.frame = Span(SCHEDULER, DECODE, None, self._pieces[0].start_s, self._pieces[-1].end_s)
        self._job_layers = {call.report.job: call.layer for call in record.answered}
        for call in self._calls:
            if call.job is not None and call.name != WAIT:
                piece = self._at(_middle(call))
                self._job_layers[call.job] = -1 if piece is None or piece.layer is None else piece.layer

    def waited_s(self) -> dict[int, float]:
        """Seconds that a GPU waited for far results, by layer."""
        waited: dict[int, float] = defaultdict(float)
        for call in self._record.answered:
            waited[call.layer] += call.report.waited_s
        return waited

    def thread(self) -> Iterator[Span]:
        """What the engine's thread did; on a CPU its copies are the link's too."""
        for piece in self._pieces:
            yield self._span(piece)
            if piece.name == COPY and self._on_cpu:
                yield Span(LINK, *piece)

    def workers(self) -> Iterator[tuple[Span, int]]:
        """What the workers did, and the numbers of the jobs: far attention, or a part of what the device does."""
        for job, thread, start_s, end_s in self._record.tasks:
            if thread == OTHER_THREAD:
                continue
            piece = self._at(start_s)
            if job in self._job_layers:
                yield Span(worker(thread), FAR, self._job_layers[job], start_s, end_s), job
            elif piece is not None:
                yield Span(worker(thread), piece.name, piece.layer, start_s, end_s), job

    def arrows(self, workers: Sequence[tuple[Span, int]], kernels: Iterable[Span]) -> Iterator[Arrow]:
        """From what gives far work to who does it, and from there to what waits for it."""
        gives, waits = self._ends(kernels)
        for span, job in workers:
            if span.name == FAR:
                if job in gives:
                    yield Arrow(gives[job], span)
                if job in waits:
                    yield Arrow(span, waits[job])

    def _ends(self, kernels: Iterable[Span]) -> tuple[dict[int, Span], dict[int, Span]]:
        """The spans that give jobs, and those that wait for them."""
        gives: dict[int, Span] = {}
        waits: dict[int, Span] = {}
        for call in self._calls:
            piece = None if call.job is None else self._at(_middle(call))
            if call.job is not None and piece is not None:
                (waits if call.name == WAIT else gives)[call.job] = self._span(piece)
        waiting = {span.layer: span for span in kernels if span.name == WAIT}
        waits |= {one.report.job: waiting[one.layer] for one in self._record.answered if one.layer in waiting}
        return gives, waits

    def _span(self, piece: Piece) -> Span:
        return Span(self._lane, *piece)

    def _at(self, time_s: float) -> Piece | None:
        """The engine thread's work at a time."""
        place = bisect_right(self._starts, time_s) - 1
        return self._pieces[place] if place >= 0 and time_s <= self._pieces[place].end_s else None


def _decoding(flat: Sequence[Piece]) -> list[Piece]:
    """The pieces between two prompts, or around them, that decode."""
    own: list[Piece] = []
    for piece in flat:
        if piece.name != PROMPT:
            own.append(piece)
        elif any(one.name == "prepare" for one in own):
            break
        else:
            own.clear()
    return own


def _middle(call: Watched) -> float:
    return (call.start_s + call.end_s) / 2


def pieces(calls: Iterable[Watched]) -> list[Piece]:
    """The calls of one thread as pieces in the order of time; a call without a layer has that of the one around it."""
    joined: list[Piece] = []
    for piece in _pieces(sorted(calls, key=lambda call: (call.start_s, -call.end_s))):
        last = joined[-1] if joined else None
        if last is not None and last[:2] == piece[:2] and last.end_s == piece.start_s:
            joined[-1] = last._replace(end_s=piece.end_s)
        else:
            joined.append(piece)
    return joined


def _pieces(calls: list[Watched]) -> Iterator[Piece]:
    around: list[Piece] = []  # that are under way, each from where it goes on
    for call in calls:
        while around and around[-1].end_s <= call.start_s:
            yield from _ended(around)
        name, layer = call.name, call.layer
        if around:
            outer = around[-1]
            if call.start_s > outer.start_s:
                yield outer._replace(end_s=call.start_s)
            name = INSIDE.get((outer.name, name), name)
            layer = outer.layer if layer is None else layer
            around[-1] = outer._replace(start_s=min(outer.end_s, call.end_s))
        end_s = min(call.end_s, around[-1].end_s) if around else call.end_s
        around.append(Piece(name, layer, call.start_s, end_s))
    while around:
        yield from _ended(around)


def _ended(around: list[Piece]) -> Iterator[Piece]:
    """The rest of the innermost call, which ends."""
    piece = around.pop()
    if piece.end_s > piece.start_s:
        yield piece
