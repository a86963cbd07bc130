"""Timing on a GPU: CUDA graphs, events, medians, a cold L2, and the bandwidth that results are compared with."""

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import torch

from ...errors import ScoutError
from ...kernels.triton.base import TritonError, triton
from ..common.measure import host_facts

FLUSH_BYTES = 256 << 20
LONGEST_REASON = 400
"""Characters that are kept of an error's message: a whole sentence of this program fits."""
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, ScoutError, TritonError)


@dataclass(frozen=True)
class Row:
    """One line of the results.

    error: relative to float64, and `limit` what it may be; None where nothing was checked.   seconds: median of one
    call; None where nothing was timed.   moved: bytes that a call has to move.   more: other numbers, by name.
    failure: first line of what was raised.
    """

    kernel: str
    case: str
    error: float | None = None
    limit: float | None = None
    seconds: float | None = None
    moved: int | None = None
    more: dict[str, float] = field(default_factory=dict)
    failure: str | None = None

    @property
    def rate(self) -> float | None:
        """Bytes per second."""
        return self.moved / self.seconds if self.moved and self.seconds else None

    @property
    def right(self) -> bool:
        """Nothing was raised, and the error is within its limit; NaN never is."""
        return self.failure is None and (self.error is None or self.limit is None or self.error <= self.limit)


def attempt(kernel: str, case: str, measure: Callable[[], Row]) -> Row:
    """The row that `measure` gives, under these names, or one that says how it failed."""
    try:
        return replace(measure(), kernel=kernel, case=case)
    except FAILURES as error:
        return Row(kernel, case, failure=f"{type(error).__name__}: {first_line(error)}")


def first_line(error: Exception) -> str:
    """The first line of an error's message, shortened if it is long."""
    return (str(error).splitlines() or [""])[0][:LONGEST_REASON]


def captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """`call` as a graph, after two calls that compile and warm up."""
    call()
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def warm_up(graph: torch.cuda.CUDAGraph) -> None:
    """Replay for a tenth of a second: a GPU that has idled, as during a check on the CPU, is slower at first."""
    until = time.perf_counter() + 0.1
    while time.perf_counter() < until:
        graph.replay()
        torch.cuda.synchronize()


class Timer:
    """Times graphs with events. Before each replay it overwrites a buffer larger than L2."""

    def __init__(self, repeats: int) -> None:
        self._repeats = repeats
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def seconds(self, call: Callable[[], object]) -> float:
        """Median seconds of a replay of `call`."""
        graph = captured(call)
        events = [(_event(), _event()) for _ in range(self._repeats)]
        warm_up(graph)
        for start, end in events:
            self._flush.zero_()
            start.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        return float(statistics.median(start.elapsed_time(end) for start, end in events)) / 1e3


def bandwidth(timer: Timer) -> list[Row]:
    """What the device's memory can do: a copy, counting bytes read and written, and a sum, which only reads."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    total = torch.empty((), device="cuda")
    return [
        attempt("copy", "1 GiB", lambda: _row(timer.seconds(lambda: target.copy_(source)), 2 * source.nbytes)),
        attempt("read", "1 GiB", lambda: _row(timer.seconds(lambda: torch.sum(source, 0, out=total)), source.nbytes)),
    ]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _row(seconds: float, moved: int) -> Row:
    return Row("", "", seconds=seconds, moved=moved)


def gpu_facts() -> dict[str, str | int]:
    """Names, counts and versions that a result of the GPU depends on."""
    gpu = {"device": torch.cuda.get_device_name(), "driver": driver(), "triton": triton.__version__}
    return host_facts() | gpu


def driver() -> str:
    """The version of NVIDIA's driver; unknown where its program is not installed, as with AMD's."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


def as_json(row: Row) -> dict[str, object]:
    """A row's fields, and values computed from them."""
    return asdict(row) | {"bytes_per_second": row.rate, "right": row.right}
