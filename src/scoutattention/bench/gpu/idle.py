"""How long a GPU works in a step."""

from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile

COPIES = ("Memcpy", "Memset", "copy_kernel")
"""Beginnings of the names of events that only move data."""


def busy_seconds(step: Callable[[], object], steps: int) -> float | None:
    """Seconds of a step, the mean of `steps`, in which the GPU worked; copying alone is no work.

    None where the profiler saw nothing of the GPU, as where a container keeps it from doing so.
    """
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    seen = [event for event in profiler.events() or () if event.device_type.name == "CUDA"]
    if not seen:
        return None
    works = (event for event in seen if not event.name.lstrip("_").startswith(COPIES))
    return covered((event.time_range.start, event.time_range.end) for event in works) / 1e6 / steps


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of (start, end) spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
