"""The native worker threads: a queue of jobs, and partial attention on them."""

from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, KernelError
from ..hardware.host import usable_cores
from ..hardware.memory_error import named_memory
from ..types import BlockList, Partial
from .packed import Blocks, Packed

try:
    with named_memory("the native extension"):
        from .. import _native
except ImportError as error:
    raise KernelError(f"the native extension is not built ({error}): build it with `pip install .`") from error

PollThread = _native.PollThread
"""A thread that looks for a device's calls while a step is under way."""
summed_reports = _native.summed_reports
OTHER_THREAD = -1
CODE_BITS = (4, 8)
"""Bits of a code that the native kernels read."""


def isa_levels() -> tuple[str, ...]:
    """Instruction sets that this CPU and this build support, worst to best."""
    return tuple(_native.isa_levels())


class Job:
    """One submitted partial. Keeps its tensors alive; dropping it unfinished waits for it."""

    def __init__(self, native: _native.Job) -> None:
        self._native = native
        self._result: Partial | None = None

    def wait(self) -> Partial:
        """The result. Blocks until it is there, without the GIL, and helps with tasks that nobody has started."""
        if self._result is None:
            self._native.wait()
            self._result = Partial(*self._native.result)
        return self._result

    @property
    def number(self) -> int:
        """Of all jobs of its workers."""
        return self._native.number

    @property
    def ran_s(self) -> float:
        """Seconds from the start of the first task to the end of the last; valid after `wait`."""
        return self._native.ran_s

    @property
    def started_s(self) -> float:
        """When the first task started, on the clock of `time.perf_counter`; valid after `wait`."""
        return self._native.started_s

    @property
    def waited_s(self) -> float:
        """Seconds that `wait` took; valid after `wait`."""
        return self._native.waited_s


TaskTimes = tuple[int, int, float, float]
"""A run of one job's tasks on one thread: job, thread, start and end.

job: its number.   thread: the worker's number from 0, or OTHER_THREAD for the thread that waited for the job.
start, end: seconds on the clock of `time.perf_counter`. A plain tuple is quick to make while a step is timed.
"""


class Workers:
    """Native threads that work through submitted jobs in order, and sleep when there are none.

    threads: how many; None is one per usable core.   isa: one of `isa_levels()`, or "auto" for the best.
    delay_s: seconds that every job begins by sleeping: for tests of overlap.
    Raises ConfigError where there are fewer cores than threads, KernelError where `isa` is not supported.
    """

    def __init__(self, threads: int | None = None, *, isa: str = "auto", delay_s: float = 0.0) -> None:
        cores = usable_cores()
        self.threads = cores if threads is None else threads
        if not 1 <= self.threads <= cores:
            raise ConfigError(f"workers={threads} is outside 1..{cores}, the cores this process may use")
        if not 0 <= delay_s < float("inf"):
            raise ConfigError(f"delay_s={delay_s} is not a number of seconds")
        self._native = _native.Workers(self.threads, isa, delay_s)
        self.isa = self._native.isa

    @property
    def native(self) -> _native.Workers:
        """The extension's object, for the native kernels."""
        return self._native

    def submit(
        self, q: Tensor, k: Blocks, v: Blocks, blocks: BlockList, scale: float, *, with_mean_key: bool = False
    ) -> Job:
        """Start attention of every query to the listed blocks of a pool, and return at once.

        q: [B, H, G, D], any float dtype.   k, v: one layer of a pool, [S, H, P, D], float32, bfloat16 or float16,
        contiguous in the last two axes, or packed; they must not change until the job is done.
        Of packed blocks, products of q with a block's steps and the tokens' weights are rounded to 15 bits.
        Raises KernelError where a tensor does not fit, or a listed index or length is out of range.
        """
        return self._start(q, k, v, blocks, scale, with_mean_key=with_mean_key, helped=False)

    def partial(
        self, q: Tensor, k: Blocks, v: Blocks, blocks: BlockList, scale: float, *, with_mean_key: bool = False
    ) -> Partial:
        """Attention of every query to the listed blocks of a pool: `submit`, then `wait`."""
        return self._start(q, k, v, blocks, scale, with_mean_key=with_mean_key, helped=True).wait()

    def _start(
        self, q: Tensor, k: Blocks, v: Blocks, blocks: BlockList, scale: float, *, with_mean_key: bool, helped: bool
    ) -> Job:
        """Submit; `helped` says that the caller waits at once, so that one thread fewer need wake."""
        q = q.to(torch.float32).contiguous()
        return Job(self._native.partial(q, pool_layer(k, v), blocks, scale, with_mean_key, helped))

    def read(self, data: Tensor) -> int:
        """Sum of the 64-bit words of `data`, modulo 2**64: for timing how fast these threads can read memory.

        data: contiguous, on the CPU, a multiple of 256 bytes.   Raises KernelError where it is not.
        """
        return self._native.read(data)

    def record_tasks(self, *, on: bool) -> None:
        """Say whether tasks of jobs that come are noted, for `take_tasks`."""
        self._native.set_recording(on)

    def take_tasks(self) -> list[TaskTimes]:
        """What was noted since it was last taken; what a job did is there once the job was waited for."""
        return self._native.take_tasks()

    def close(self) -> None:
        """Finish what was submitted and end the threads. A second call does nothing."""
        self._native.close()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PoolLayer(NamedTuple):
    """Keys and values of one layer of a pool.

    k, v: [S, H, P, D] each, or the words of packed blocks, see `Packed`.   k_bounds, v_bounds: of packed blocks.
    bits: of a code; 0 where the blocks are not packed.   positions: P.
    """

    k: Tensor
    v: Tensor
    k_bounds: Tensor | None
    v_bounds: Tensor | None
    bits: int
    positions: int


def pool_layer(k: Blocks, v: Blocks) -> PoolLayer:
    """The layer of these keys and values, both packed alike or neither.   Raises KernelError where they differ."""
    if isinstance(k, Tensor) and isinstance(v, Tensor):
        return PoolLayer(k, v, None, None, 0, 0)
    if isinstance(k, Tensor) or isinstance(v, Tensor):
        raise KernelError("one of k and v is packed, and the other is not: both must be alike")
    _check_packed(k, v)
    return PoolLayer(k.words, v.words, k.bounds, v.bounds, k.bits, k.rows)


def _check_packed(k: Packed, v: Packed) -> None:
    if k.bits != v.bits or k.bits not in CODE_BITS:
        raise KernelError(f"k has {k.bits} bits a channel and v {v.bits}: both must have 4 or 8 alike")
    if k.by_token or not v.by_token:
        raise KernelError("k's words must go along the channels, and v's along the tokens")
    if k.shape != v.shape:
        raise KernelError(f"k is {list(k.shape)} and v {list(v.shape)}: packed keys and values must have one shape")
