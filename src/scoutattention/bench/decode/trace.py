"""Spans as a file that Perfetto (ui.perfetto.dev) and Chrome (chrome://tracing) show.

The format is the JSON array of "Trace Event Format" (Google, 2016): complete events and names of processes and threads.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .job import Span

Event = dict[str, Any]


def trace(processes: Mapping[str, Iterable[Span]]) -> str:
    """The spans of named processes, in microseconds of a clock that they share: a track for the main thread of each.

    Jobs on the workers' threads may overlap, and what is on one track may not: they take the first that is free.
    """
    events = [
        event
        for process, (name, spans) in enumerate(processes.items(), start=1)
        for event in (_name("process", name, process, 0), *_events(process, list(spans)))
    ]
    return json.dumps({"traceEvents": events})


def _events(process: int, spans: list[Span]) -> Iterator[Event]:
    yield _name("thread", "main", process, 0)
    yield from (_complete(span, process, 0) for span in spans if span.thread == "main")
    ends: list[float] = []  # of the last job of each track
    for span in sorted((span for span in spans if span.thread != "main"), key=lambda span: span.start):
        track = next((track for track, end in enumerate(ends) if end <= span.start), len(ends))
        if track == len(ends):
            ends.append(0.0)
            yield _name("thread", span.thread if track == 0 else f"{span.thread}, {track + 1}", process, track + 1)
        ends[track] = span.start + span.seconds
        yield _complete(span, process, track + 1)


def _complete(span: Span, process: int, track: int) -> Event:
    event = {"name": span.stage, "ph": "X", "pid": process, "tid": track}
    event |= {"ts": span.start * 1e6, "dur": span.seconds * 1e6}
    return event if span.layer is None else event | {"args": {"layer": span.layer}}


def _name(kind: str, name: str, process: int, track: int) -> Event:
    return {"name": f"{kind}_name", "ph": "M", "pid": process, "tid": track, "args": {"name": name}}
