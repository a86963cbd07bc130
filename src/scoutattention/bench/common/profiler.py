"""What a GPU did, as PyTorch's profiler tells it: kernels and copies on the clock of `time.perf_counter`."""

import time
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

COPIES = ("Memcpy", "Memset", "copy_kernel", "unpack_kernel")
"""Beginnings of the names of events that only move data."""
LONGEST_NAME = 60
LETTING_GO_S = 0.05
"""Seconds in which CUPTI ends after that kernel; see `let_go`."""


class Event(NamedTuple):
    """A kernel or a copy that a GPU ran, and when, in microseconds."""

    name: str
    start: float
    end: float

    @property
    def copies(self) -> bool:
        """Whether it only moved data."""
        return self.name.lstrip("_").startswith(COPIES)


class Profiler:
    """The kernels and copies of a GPU from `begin` to `end`, which the same thread must call.

    events: what was seen; empty before the end, and where the profiler sees no GPU, as in some containers.
    """

    def __init__(self) -> None:
        self._profile: Any = None
        self._ended = False
        self.events: list[Event] = []

    def begin(self) -> None:
        """Record from now on. A second call does nothing."""
        if self._profile is None:
            self._profile = profile(activities=[ProfilerActivity.CUDA])
            self._profile.start()

    def end(self) -> None:
        """Record no more. A second call does nothing."""
        if self._profile is not None and not self._ended:
            self._ended = True
            torch.cuda.synchronize()
            self._profile.stop()
            self.events = events_of(self._profile, "CUDA")
            let_go()


def let_go() -> None:
    """Launch a kernel, at which CUPTI ends where TEARDOWN_CUPTI is set.

    Otherwise it ends at the first kernel of the next profile, which then sees nothing (PyTorch 2.11).
    """
    torch.zeros(1, device="cuda").add_(1)
    torch.cuda.synchronize()
    time.sleep(LETTING_GO_S)


def events_of(profiler: Any, device: str) -> list[Event]:  # noqa: ANN401  # PyTorch's, of which its stub lacks most
    """What a kind of device did; empty where nothing was seen."""
    began_us = profiler.profiler.kineto_results.trace_start_ns() / 1e3 - (time.time() - time.perf_counter()) * 1e6
    return [
        Event(event.name, began_us + event.time_range.start, began_us + event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type.name == device
    ]


def short_name(name: str) -> str:
    """A kernel's name without its arguments, and of PyTorch's own without what it was made for."""
    if name.startswith("Mem"):  # from where to where is said in brackets
        return name[:LONGEST_NAME]
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "").partition("(")[0]
    if name.startswith("at::native::"):
        name = name.partition("<")[0].rpartition("::")[2]
    return name[:LONGEST_NAME]
