"""What a GPU did, from the profiler of PyTorch: the lanes of the device and of the link, in captured steps too."""

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ...trace.span import Span
from ...trace.timeline import DEVICE, LINK, WAIT
from ..gpu.idle import Event, short_name

STAGES = {
    "take": WAIT,
    "append": "append",
    "partial": "near",
    "combine": "near",
    "join": "merge",
    "merge": "merge",
    "correct_kernel": "merge",
    "scout_error": "guard",
    "score": "choose",
    "top": "choose",
    "project": "choose",
    "dims": "scout",
    "correction": "scout",
    "split": "hand over",
    "list": "hand over",
    "stage": "hand over",
    "recall": "recall",
    "wanted": "recall",
    "count": "recall",
    "follow": "recall",
    "swiglu": "mlp",
}
"""Beginnings of the names of this project's kernels, and their stages."""


class Kernels:
    """The kernels and copies of a GPU from `begin` to `end`, which the same thread must call."""

    def __init__(self) -> None:
        self._profiler: Any = None
        self._events: list[Event] = []

    def begin(self) -> None:
        """Record from now on. A second call does nothing."""
        if self._profiler is None:
            self._profiler = profile(activities=[ProfilerActivity.CUDA])
            self._profiler.start()

    def end(self) -> None:
        """Stop recording. A second call does nothing."""
        if self._profiler is not None and not self._events:
            torch.cuda.synchronize()
            self._profiler.stop()
            self._events = events_of(self._profiler, "CUDA")

    def spans(self) -> list[Span]:
        """The recorded spans, without layers."""
        return [_span(event) for event in self._events]


def events_of(profiler: Any, device: str) -> list[Event]:  # noqa: ANN401  # PyTorch's, of which its stub lacks most
    """What a kind of device did, in microseconds on the clock of `time.perf_counter`; empty where nothing was seen."""
    began_us = profiler.profiler.kineto_results.trace_start_ns() / 1e3 - (time.time() - time.perf_counter()) * 1e6
    return [
        Event(event.name, began_us + event.time_range.start, began_us + event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type.name == device
    ]


def with_layers(spans: Iterable[Span], layers: int) -> list[Span]:
    """The spans of one step, in the order of time; where every layer has a stage equally often, it is counted which."""
    by_name: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start_s):
        by_name[span.lane, span.name].append(span)
    counted = (
        Span(span.lane, span.name, None if len(alike) % layers else place * layers // len(alike), *_times(span))
        for alike in by_name.values()
        for place, span in enumerate(alike)
    )
    return sorted(counted, key=lambda span: span.start_s)


def _span(event: Event) -> Span:
    times = event.start / 1e6, event.end / 1e6
    if event.copies:
        return Span(LINK, "copy", None, *times)
    name = short_name(event.name)
    stage = next((stage for begin, stage in STAGES.items() if name.lstrip("_").startswith(begin)), name)
    return Span(DEVICE, stage, None, *times)


def _times(span: Span) -> tuple[float, float]:
    return span.start_s, span.end_s
