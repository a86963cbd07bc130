"""Timelines as files that Perfetto (ui.perfetto.dev) and Chrome (chrome://tracing) show.

The format is the JSON object of "Trace Event Format" (Google, 2016). A timeline is a process, and a lane is a thread of
it. Spans are complete events (X), arrows are flow events (s, f), and names are metadata (M). Times are microseconds.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ConfigError
from .span import Span
from .timeline import Arrow, Timeline

Event = dict[str, Any]
TICK_S = 1e-9
"""The least time that a file tells apart."""


def to_json(timelines: Mapping[str, Timeline]) -> str:
    """The text of a file. Timelines have names, and a clock that they share; the file's time begins with them."""
    spans = [span for timeline in timelines.values() for span in timeline.spans]
    begin = min((span.start_s for span in spans), default=0.0)
    events = [
        event
        for process, (name, timeline) in enumerate(timelines.items(), start=1)
        for event in _events(process, name, timeline, begin)
    ]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def from_json(text: str | bytes) -> dict[str, Timeline]:
    """The timelines of a file, by name; events of kinds that `to_json` does not write are left out.

    Raises ConfigError where the text is not a trace, or has no spans.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"it is not JSON: {str(error)[:80]}") from error
    events = content.get("traceEvents") if isinstance(content, dict) else content
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise ConfigError("it has no list of traceEvents")
    try:
        found = _Reading(events).timelines()
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ConfigError(f"one of its events is malformed: {type(error).__name__} {str(error)[:80]}") from error
    if not any(timeline.spans for timeline in found.values()):
        raise ConfigError("it has no spans")
    return found


def _events(process: int, name: str, timeline: Timeline, begin: float) -> Iterator[Event]:
    threads = {lane: number for number, lane in enumerate(timeline.lanes(), start=1)}
    yield _name("process", name, process, 0)
    for lane, thread in threads.items():
        yield _name("thread", lane, process, thread)
        yield {"ph": "M", "name": "thread_sort_index", "pid": process, "tid": thread, "args": {"sort_index": thread}}

    def place(span: Span, at_s: float) -> Event:
        return {"pid": process, "tid": threads[span.lane], "ts": round((at_s - begin) * 1e6, 3)}

    for span in timeline.spans:
        event = {"ph": "X", "name": span.name, **place(span, span.start_s)}
        event["dur"] = round((span.end_s - begin) * 1e6 - event["ts"], 3)
        yield event if span.layer is None else event | {"args": {"layer": span.layer}}
    for number, arrow in enumerate(timeline.arrows):
        start, end = arrow.start, arrow.end
        taken = min(max(start.end_s, end.start_s), end.end_s - TICK_S)
        given = min(max(start.start_s, taken), start.end_s - TICK_S)
        about = {"name": "hand-over", "cat": "far", "id": f"{process}.{number}"}
        yield {"ph": "s", **about, **place(start, given)}
        yield {"ph": "f", "bp": "e", **about, **place(end, taken)}


def _name(kind: str, name: str, process: int, thread: int) -> Event:
    return {"ph": "M", "name": f"{kind}_name", "pid": process, "tid": thread, "args": {"name": name}}


class _Reading:
    """The events of a file, sorted by what they are."""

    def __init__(self, events: list[Event]) -> None:
        self._names: dict[tuple[object, ...], str] = {}
        self._spans: dict[object, list[Span]] = {}
        self._ends: dict[tuple[object, object, object], dict[str, Event]] = {}
        for event in events:
            kind = event.get("ph")
            if kind == "M" and event["name"] in ("process_name", "thread_name"):
                thread = () if event["name"] == "process_name" else (event["tid"],)
                self._names[event["pid"], *thread] = str(event["args"]["name"])
        for event in events:
            kind = event.get("ph")
            if kind == "X":
                self._spans.setdefault(event["pid"], []).append(self._span(event))
            elif kind in ("s", "f"):
                key = event["pid"], event.get("cat"), event["id"]
                self._ends.setdefault(key, {})[kind] = event

    def timelines(self) -> dict[str, Timeline]:
        """Every process that has spans."""
        return {
            self._names.get((process,), f"process {process}"): Timeline(
                tuple(spans), tuple(self._arrows(process, spans))
            )
            for process, spans in self._spans.items()
        }

    def _span(self, event: Event) -> Span:
        layer = event.get("args", {}).get("layer")
        start_s = float(event["ts"]) / 1e6
        end_s = start_s + float(event["dur"]) / 1e6
        if not 0 <= start_s <= end_s < float("inf"):
            raise ValueError(f"{event['name']} is from {start_s} s to {end_s} s")
        return Span(self._lane(event), str(event["name"]), None if layer is None else int(layer), start_s, end_s)

    def _lane(self, event: Event) -> str:
        return self._names.get((event["pid"], event["tid"]), f"thread {event['tid']}")

    def _arrows(self, process: object, spans: list[Span]) -> Iterator[Arrow]:
        lanes: dict[str, list[Span]] = {}
        for span in sorted(spans, key=lambda span: span.start_s):
            lanes.setdefault(span.lane, []).append(span)
        for (its_process, *_), ends in self._ends.items():
            if its_process == process and len(ends) == 2:
                found = [self._at(lanes, ends[kind]) for kind in ("s", "f")]
                if found[0] is not None and found[1] is not None:
                    yield Arrow(found[0], found[1])

    def _at(self, lanes: dict[str, list[Span]], end: Event) -> Span | None:
        """The span that an end of an arrow lies in."""
        spans, at_s = lanes.get(self._lane(end), []), float(end["ts"]) / 1e6
        place = bisect_right(spans, at_s + TICK_S / 2, key=lambda span: span.start_s) - 1
        return spans[place] if place >= 0 and at_s <= spans[place].end_s + TICK_S else None
