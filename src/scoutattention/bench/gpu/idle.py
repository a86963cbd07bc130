"""What a GPU does in a step: how long it works, and which kernels it runs."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from .cases import Kernel

COPIES = ("Memcpy", "Memset", "copy_kernel", "unpack_kernel")
"""Beginnings of the names of events that only move data."""
LONGEST_NAME = 60


class Event(NamedTuple):
    """A kernel or a copy that a GPU ran, and when, in microseconds."""

    name: str
    start: float
    end: float

    @property
    def copies(self) -> bool:
        """Whether it only moved data."""
        return self.name.lstrip("_").startswith(COPIES)


def traced(step: Callable[[], object], steps: int) -> list[Event]:
    """The GPU's work in `steps` steps; empty if the profiler saw nothing, as in some containers."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    seen = (event for event in profiler.events() or () if event.device_type.name == "CUDA")
    return [Event(event.name, event.time_range.start, event.time_range.end) for event in seen]


def busy_seconds(events: list[Event], steps: int) -> float | None:
    """Seconds of a step, the mean of `steps`, in which the GPU worked; copying alone is no work.   None: not seen."""
    if not events:
        return None
    return covered((event.start, event.end) for event in events if not event.copies) / 1e6 / steps


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of (start, end) spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def by_name(events: list[Event], steps: int) -> tuple[Kernel, ...]:
    """A step's kernels and copies by name, those that took longest first."""
    named: dict[tuple[str, bool], list[Event]] = defaultdict(list)
    for event in events:
        named[short_name(event.name), event.copies].append(event)
    kernels = (
        Kernel(name, sum(each.end - each.start for each in same) / 1e3 / steps, len(same) / steps, copies)
        for (name, copies), same in named.items()
    )
    return tuple(sorted(kernels, key=lambda kernel: -kernel.ms))


def short_name(name: str) -> str:
    """A kernel's name without its arguments, and of PyTorch's own without what it was made for."""
    if name.startswith("Mem"):  # from where to where is said in brackets
        return name[:LONGEST_NAME]
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "").partition("(")[0]
    if name.startswith("at::native::"):
        name = name.partition("<")[0].rpartition("::")[2]
    return name[:LONGEST_NAME]
