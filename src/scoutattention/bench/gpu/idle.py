"""What a GPU does in a step: how long it works, and which kernels it runs."""

from collections import defaultdict
from collections.abc import Callable, Iterable

from ..common.profiler import Event, Profiler, short_name
from .cases import Kernel


def traced(step: Callable[[], object], steps: int) -> list[Event]:
    """The GPU's work in `steps` steps; empty if the profiler saw nothing, as in some containers."""
    profiler = Profiler()
    profiler.begin()
    try:
        for _ in range(steps):
            step()
    finally:
        profiler.end()
    return profiler.events


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
