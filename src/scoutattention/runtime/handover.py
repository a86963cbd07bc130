"""Far partials that a device's stream starts and waits for, in a captured graph too: no Python runs when it does."""

from typing import NamedTuple

from torch import Tensor

from ..errors import ConfigError, KernelError
from ..types import BlockList, Partial
from .host_functions import HostQueue
from .packed import Blocks
from .workers import HANDOVER_START, HANDOVER_WAIT, Workers, pool_layer

LONGEST_S = 86_400.0


class PartialCall(NamedTuple):
    """What `Workers.submit` takes, in tensors that stay where they are; q is float32 and contiguous."""

    q: Tensor
    k: Blocks
    v: Blocks
    blocks: BlockList
    scale: float


class Handover:
    """One `Workers.partial` over tensors that stay where they are: what they hold is read whenever a stream starts it.

    Owns its tensors and workers. What a stream still holds of one that is closed or dropped does nothing any more;
    closing waits only for what runs. The device's own use of the tensors has to end before they do, as ever.
    The idea of passing C functions to a stream is that of KTransformers' CPU backend.
    """

    def __init__(
        self, workers: Workers, call: PartialCall, result: Partial, *, functions: HostQueue, timeout_s: float = 10.0
    ) -> None:
        """`result`: contiguous float32 tensors that each call fills in; with a mean key, it is computed.

        functions: what queues host functions.   timeout_s: seconds that a stream waits at most, up to a day.
        Raises KernelError where a tensor does not fit, ConfigError where the time does not.
        """
        if not 0 < timeout_s <= LONGEST_S:
            raise ConfigError(f"timeout_s={timeout_s} is outside 0..{LONGEST_S:g} seconds: set how long a stream waits")
        q, k, v, blocks, scale = call
        self._native = workers.native.handover(q, pool_layer(k, v), blocks, scale, result, timeout_s)
        self._functions = functions
        self.result = result

    @property
    def ticket(self) -> int:
        """The number that stands for it."""
        return self._native.ticket

    def start(self, stream: int | None = None) -> None:
        """Queue a start: the CPU attends with what q and the list hold then, while the stream goes on.

        stream: the device's handle of one; None is the current stream. What a start left that nobody waited for, when
        a step was broken off, is dropped by the next one.
        """
        self._functions.queue(HANDOVER_START, self.ticket, stream)

    def wait(self, stream: int | None = None) -> None:
        """Queue a wait: the stream goes on when `result` is there, or after `timeout_s` as if there were no keys."""
        self._functions.queue(HANDOVER_WAIT, self.ticket, stream)

    def failure(self) -> str | None:
        """What went wrong first since the last `check`, if anything did; waits for a call that is under way.

        A call that failed has left its result as that of no keys.
        """
        return self._native.failure or None

    def check(self) -> None:
        """Raise KernelError where a call failed, and forget it."""
        failure = self.failure()
        if failure is not None:
            self._native.forget_failure()
            raise KernelError(f"far attention on the CPU: {failure}")

    def close(self) -> None:
        """Give up what runs, wait for its end, and do nothing ever after. A second call does nothing."""
        self._native.close()

    @property
    def started_s(self) -> float:
        """When the first task of the last call started, on the clock of `time.perf_counter`; 0 where it had none."""
        return self._native.times[0]

    @property
    def ran_s(self) -> float:
        """Seconds from the start of the last call's first task to the end of its last; 0 where it had none."""
        return self._native.times[1]

    @property
    def waited_s(self) -> float:
        """Seconds that the stream waited for the last call."""
        return self._native.times[2]
