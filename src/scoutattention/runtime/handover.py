"""Far partials that a device calls for and waits for by flags in host memory, in a captured graph too.

No Python runs when it does: a native thread looks for calls, and native workers answer them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import KernelError
from ..types import BlockList, CallFlags, Partial
from .packed import Blocks
from .workers import PollThread, Workers, pool_layer, summed_reports

LINES = 512
"""Calls whose flags lie together: the thread that looks for calls reads 32 cache lines for them."""


class _Lines(NamedTuple):
    """The flags of LINES calls, as in `CallFlags`, one axis more in front.

    seen: `called` for the host to read, without an operation of PyTorch.   before: the same when the step began.
    """

    called: Tensor
    answered: Tensor
    waited: Tensor
    counts: Tensor
    seen: np.ndarray
    before: np.ndarray


class FlagTable:
    """The flags of any number of calls, and the thread that looks at them while a step is under way."""

    def __init__(self, device: torch.device) -> None:
        """`device`: where calls come from."""
        self.thread = PollThread()
        self._device = device
        self._lines: list[_Lines] = []
        self._count = 0
        self._late = self._host(1)
        self._late_seen = self._late.numpy()
        self._gave_up = torch.zeros(1, dtype=torch.int32, device=device)

    def add(self) -> CallFlags:
        """The flags of one more call; no graph may be being captured."""
        place = self._count % LINES
        if place == 0:
            counts = torch.zeros(LINES, 4, dtype=torch.int32, device=self._device)
            called, waited = self._host(LINES), self._host(LINES, dtype=torch.int64)
            seen = called.numpy()
            self._lines.append(_Lines(called, self._host(LINES), waited, counts, seen, seen.copy()))
        self._count += 1
        called, answered, waited, counts, *_ = self._lines[-1]
        here = slice(place, place + 1)
        return CallFlags(
            *(called[here], answered[here], waited[here], counts[place]), self._late, self._gave_up, self._count
        )

    def begin(self) -> None:
        """Look for calls from now on: a step is to be queued."""
        self.take_late()  # of a step that was broken off
        for lines in self._lines:
            lines.before[:] = lines.seen
        self.thread.begin()

    def end(self) -> None:
        """Look no more: the device is done with the step.   Raises KernelError where the thread has ended by itself."""
        self.thread.end()
        failure = self.thread.failure()
        if failure:
            self.take_late()
            raise KernelError(f"the thread that takes the device's calls for far attention ended: {failure}")

    def made(self) -> list[int]:
        """The lines of the calls that the device has made since `begin`."""
        changed = [np.flatnonzero(lines.seen != lines.before) + 1 for lines in self._lines]
        return [line + LINES * number for number, part in enumerate(changed) for line in part.tolist()]

    def take_late(self) -> int:
        """The line of a call that was not answered in time since this was last asked, or 0."""
        line = int(self._late_seen[0])
        if line:
            self._late_seen[0] = 0
            self._gave_up.zero_()
        return line

    def close(self) -> None:
        """End the poll thread, which answers no call after that. A second call does nothing."""
        self.thread.close()

    def _host(self, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, pin_memory=self._device.type == "cuda")


class PartialCall(NamedTuple):
    """What `Workers.submit` takes, in tensors that stay where they are; q is float32 and contiguous."""

    q: Tensor
    k: Blocks
    v: Blocks
    blocks: BlockList
    scale: float


class Report(NamedTuple):
    """Of the last call of a handover.

    started_s: when its first task started, on the clock of `time.perf_counter`.   ran_s: seconds from there to the end
    of its last task. Both are 0 where it had no keys.   waited_s: seconds that the device waited for it.
    failure: what went wrong first since `forget`, empty where nothing did.   job: its number, -1 where it had no keys.
    """

    started_s: float
    ran_s: float
    waited_s: float
    failure: str
    job: int


class Sums(NamedTuple):
    """Of the last calls of handovers: seconds that ran behind the device's work, and that it waited for.

    failed: the place of the first one that has failed, or -1.
    """

    hidden_s: float
    waited_s: float
    failed: int


def summed(handovers: Sequence["Handover"]) -> Sums:
    """The sums of handovers whose last calls the device has waited for."""
    return Sums(*summed_reports([handover.native for handover in handovers]))


class Handover:
    """One `Workers.partial` over tensors that stay where they are: what they hold is read whenever a device calls.

    Owns its tensors, its workers and the thread that looks for calls. A call is made by raising `flags.called`, and
    answered, once `result` is there, in `flags.answered`. One that is refused is answered with the result of no keys.
    The device's own use of the tensors has to end before they do, as ever.
    """

    def __init__(self, workers: Workers, call: PartialCall, result: Partial, table: FlagTable) -> None:
        """`result`: contiguous float32 tensors that each call fills in; with a mean key, it is computed.

        Raises KernelError where a tensor does not fit.
        """
        q, k, v, self._blocks, scale = call
        self.flags = table.add()
        flags = self.flags[:3]
        self.native = workers.native.handover(q, pool_layer(k, v), self._blocks, scale, result, flags, table.thread)
        self.result = result

    def report(self) -> Report:
        """What the last call took, when the device has waited for it; and the first failure."""
        return Report(*self.native.report())

    def give_up(self) -> str:
        """End the last call, which the device waits for no more: nothing is written. Returns how far it had come."""
        return self.native.give_up(self.number)

    def forget(self) -> None:
        """Forget failures."""
        self.native.forget_failure()

    @property
    def number(self) -> int:
        """Calls that the device has made."""
        return int(self.flags.called)

    @property
    def pages(self) -> int:
        """Pages, counted once for each KV head, that the last call is to attend to."""
        return int(self._blocks.length.count_nonzero())

    def close(self) -> None:
        """Give up what runs, wait for its end, and see no call ever after. A second call does nothing."""
        self.native.close()
