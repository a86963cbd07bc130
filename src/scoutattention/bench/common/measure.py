"""What every measurement shares: errors, medians of interleaved calls, and what a result depends on."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...hardware.host import Host, read_cores, read_cpu


def relative_error(got: Tensor, want: Tensor) -> float:
    """Norm of the difference over the norm of what is wanted; entries that are equal, -inf too, differ by 0."""
    got, want = got.double().cpu(), want.double().cpu()
    same = got == want
    difference = torch.where(same, 0.0, got - want)
    return float(difference.norm() / want.masked_fill(want.isinf(), 0).norm().clamp(min=1e-30)) if want.numel() else 0.0


def interleaved(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of each call, in rounds of one call of each, after a round that is not counted.

    What disturbs the machine for a while then disturbs all of them.
    """
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, seconds in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if number > 0:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def host_facts() -> dict[str, str | int]:
    """Names, counts and versions that a result of the CPU depends on."""
    host = Host()
    return {
        "cpu": read_cpu(host)[0],
        "cores": read_cores(host).usable,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
