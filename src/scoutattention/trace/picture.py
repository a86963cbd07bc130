"""A decode step as a picture: what every lane did, as bars of stages on an axis of time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import ConfigError
from .span import Span
from .timeline import DEVICE, HOST, Timeline, far_time

COLOURS = {
    "decode": "#d0d0d0",
    "schedule": "#b0b0b0",
    "prepare": "#c8b8a0",
    "norm": "#d8d0e0",
    "project": "#8c9bab",
    "scout": "#009e73",
    "choose": "#f0d442",
    "hand over": "#222222",
    "append": "#e69f00",
    "near": "#56b4e9",
    "far": "#0072b2",
    "wait far": "#d52a00",
    "guard": "#882255",
    "merge": "#cc79a7",
    "attend": "#e4e4e4",
    "mlp": "#aab8c6",
    "head": "#6a7480",
    "recall": "#44aa99",
    "copy": "#117733",
    "read back": "#7a5c3a",
}
"""Of stages, in the order of the legend: what is waited for is red, and work that hides is blue."""
OTHERS = ("#b5a7d6", "#c2d6a7", "#d6b5a7", "#a7d6d0", "#d6a7c2")
"""Of stages that are not known here."""


class Bar(NamedTuple):
    """A span in the picture.   row: counted from the top.   text: its description."""

    row: int
    start_ms: float
    end_ms: float
    colour: str
    text: str


class Line(NamedTuple):
    """An arrow, from a row and a time to a row and a time."""

    from_row: int
    from_ms: float
    to_row: int
    to_ms: float


@dataclass(frozen=True)
class Picture:
    """What is drawn. Times are milliseconds since the step began.

    titles: one line for each timeline.   rows: the name of each lane.   layers: of the first timeline, when each began.
    legend: colours of stages.
    """

    titles: tuple[str, ...]
    rows: tuple[str, ...]
    bars: tuple[Bar, ...]
    lines: tuple[Line, ...]
    layers: Mapping[int, float]
    legend: Mapping[str, str]
    end_ms: float


def draw_step(timelines: Mapping[str, Timeline], number: int | None = None) -> Picture:
    """One decode step of each timeline that has any, one below the other.

    number: of the step, from 1; None is the step of median length, of each timeline its own.
    Raises ConfigError where there is no such step.
    """
    steps = {name: timeline.steps() for name, timeline in timelines.items() if timeline.steps()}
    if not steps:
        raise ConfigError('it has no decode step: a span "decode" of the lane "scheduler"')
    most = max(map(len, steps.values()))
    if number is not None and not 1 <= number <= most:
        raise ConfigError(f"--step {number} is outside 1..{most}, the decode steps of the file")
    drawing = _Drawing(several=len(steps) > 1)
    for name, of_it in steps.items():
        if number is None:
            drawing.add(name, timelines[name], of_it, _median(of_it))
        elif number <= len(of_it):
            drawing.add(name, timelines[name], of_it, of_it[number - 1])
    return drawing.picture()


def _median(steps: list[Span]) -> Span:
    return sorted(steps, key=lambda step: step.end_s - step.start_s)[(len(steps) - 1) // 2]


class _Drawing:
    """A picture that is being made.   several: whether there are several timelines, whose names are told then."""

    def __init__(self, *, several: bool) -> None:
        self._several = several
        self._titles: list[str] = []
        self._rows: list[str] = []
        self._bars: list[Bar] = []
        self._lines: list[Line] = []
        self._layers: dict[int, float] = {}
        self._stages: dict[str, str] = {}

    def add(self, name: str, timeline: Timeline, steps: list[Span], step: Span) -> None:
        """Draw a step of a timeline below the earlier ones."""
        part, begin = timeline.part(step), step.start_s
        times, head = far_time(part), f"{name}, " if self._several else ""
        which = f"{head}decode step {steps.index(step) + 1} of {len(steps)}: {_ms(step.end_s - begin)}"
        far = f"{_ms(times.hidden_s)} hidden behind other work, {_ms(times.waited_s)} waited for"
        self._titles.append(f"{which}. CPU attention to far blocks: {far}.")
        rows = {lane: len(self._rows) + number for number, lane in enumerate(part.lanes())}
        self._rows += [f"{name}: {lane}" if self._several else lane for lane in rows]
        for span in part.spans:
            colour = self._colour(span.name)
            start_ms, end_ms = (span.start_s - begin) * 1e3, (span.end_s - begin) * 1e3
            layer = "" if span.layer is None else f", layer {span.layer}"
            text = f"{span.name}{layer}: {_ms(span.end_s - span.start_s)}, from {start_ms:.3f} ms"
            self._bars.append(Bar(rows[span.lane], start_ms, end_ms, colour, text))
            if len(self._titles) == 1 and span.layer is not None and span.lane in (DEVICE, HOST):
                self._layers[span.layer] = min(start_ms, self._layers.get(span.layer, start_ms))
        for arrow in part.arrows:
            start, end = arrow.start, arrow.end
            at_ms = (min(max(start.end_s, end.start_s), end.end_s) - begin) * 1e3
            self._lines.append(Line(rows[start.lane], (start.end_s - begin) * 1e3, rows[end.lane], at_ms))

    def picture(self) -> Picture:
        """The finished picture."""
        known = [name for name in COLOURS if name in self._stages]
        legend = {name: self._stages[name] for name in [*known, *sorted(self._stages.keys() - set(known))]}
        end_ms = max(bar.end_ms for bar in self._bars)
        return Picture(
            *(tuple(self._titles), tuple(self._rows), tuple(self._bars), tuple(self._lines)),
            layers=self._layers,
            legend=legend,
            end_ms=end_ms,
        )

    def _colour(self, stage: str) -> str:
        unknown = len(self._stages.keys() - COLOURS.keys())
        return self._stages.setdefault(stage, COLOURS.get(stage) or OTHERS[unknown % len(OTHERS)])


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
