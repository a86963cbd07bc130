"""Timelines: spans of lanes, and the hand-overs between them; and what a decode step hid and waited for."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from .span import Span

SCHEDULER, HOST, DEVICE, LINK = "scheduler", "host", "device", "link"
"""Lanes. On a CPU the main thread is the device; beside a GPU it is the host, which has a lane of its own then."""
DECODE, PROMPT, WAIT, FAR = "decode", "prompt", "wait far", "far"
"""Names of spans: a decode step, and reading a prompt; a wait for far attention; and far attention, of a worker."""


def worker(number: int) -> str:
    """The lane of a worker thread, counted from 0."""
    return f"worker {number + 1}"


@dataclass(frozen=True)
class Arrow:
    """A hand-over: `start` gives work, or a result, to `end`."""

    start: Span
    end: Span


@dataclass(frozen=True)
class Timeline:
    """Spans, those of one lane one after the other, and arrows between them."""

    spans: tuple[Span, ...]
    arrows: tuple[Arrow, ...] = ()

    def lanes(self) -> list[str]:
        """The lanes from top to bottom of a picture."""
        first = (SCHEDULER, HOST, DEVICE, LINK)
        names = dict.fromkeys(span.lane for span in self.spans)
        others = sorted(names.keys() - set(first), key=lambda name: (len(name), name))
        return [name for name in first if name in names] + others

    def steps(self) -> list[Span]:
        """The decode steps, in the order of time."""
        found = (span for span in self.spans if span.lane == SCHEDULER and span.name == DECODE)
        return sorted(found, key=lambda span: span.start_s)

    def part(self, step: Span) -> "Timeline":
        """What began in a step, with the arrows in it."""
        inside = tuple(span for span in self.spans if step.start_s <= span.start_s < step.end_s)
        known = set(inside)
        arrows = tuple(arrow for arrow in self.arrows if arrow.start in known and arrow.end in known)
        return Timeline(inside, arrows)


def stage_seconds(timeline: Timeline) -> dict[str, float]:
    """Seconds of each stage of the device in decode steps, most first."""
    total: dict[str, float] = defaultdict(float)
    for span in timeline.spans:
        if span.lane == DEVICE and span.name != PROMPT:
            total[span.name] += span.end_s - span.start_s
    return dict(sorted(total.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class FarTime:
    """Seconds of far attention that ran behind other work, and that were waited for."""

    hidden_s: float
    waited_s: float


def far_time(timeline: Timeline) -> FarTime:
    """What a timeline hid and waited for: of each wait, the work that its arrows come from, up to its own start."""
    sources: dict[Span, list[Span]] = defaultdict(list)
    for arrow in timeline.arrows:
        if arrow.end.name == WAIT:
            sources[arrow.end].append(arrow.start)
    hidden_s = sum(_hidden(wait, work) for wait, work in sources.items())
    waited_s = sum(span.end_s - span.start_s for span in timeline.spans if span.name == WAIT)
    return FarTime(hidden_s, waited_s)


def _hidden(wait: Span, work: Iterable[Span]) -> float:
    began, ended = min(span.start_s for span in work), max(span.end_s for span in work)
    return max(0.0, min(wait.start_s, ended) - began)
