"""The device's side of a `Watch`: asking for a handover, and waiting for the answer, by numbers in pinned memory."""

import torch
from torch import Tensor

from .triton_base import Launch, check, tl, triton


@triton.jit
def _ask_kernel(flags: tl.tensor, state: tl.tensor) -> None:
    number = tl.load(state) + 1
    tl.store(state, number)
    tl.atomic_xchg(flags, number, sem="release", scope="sys")


@triton.jit
def _await_kernel(flags: tl.tensor, state: tl.tensor, polls: int) -> None:
    """Reads alone: an atomic operation over a link may write back what the host has changed meanwhile."""
    number = tl.load(state)
    seen = tl.load(flags + 1, volatile=True)
    left = tl.full((), polls, tl.int32)
    while (seen != number) & (left > 0):
        seen = tl.load(flags + 1, volatile=True)
        left -= 1
    if seen != number:
        tl.store(state + 1, 1)


def ask_launch(flags: Tensor, state: Tensor) -> Launch:
    """The launch of `ask`."""
    return Launch(_ask_kernel, (1,), (flags, state), warps=1)


def ask(flags: Tensor, state: Tensor) -> None:
    """Ask the host for one more call: what earlier work of the stream wrote is there when it starts.

    flags: int32 [2], a handover's row of what its `Watch` was made with.
    state: int32 [2] on the device, zero at first: the last call's number, and 1 where an answer was not waited for.
    Raises KernelError where a tensor does not fit.
    """
    _check(flags, state)
    ask_launch(flags, state).run()


def await_launch(flags: Tensor, state: Tensor, polls: int) -> Launch:
    """The launch of `await_answer`."""
    return Launch(_await_kernel, (1,), (flags, state, polls), warps=1)


def await_answer(flags: Tensor, state: Tensor, *, polls: int) -> None:
    """Hold the stream until the last call that was asked for has ended; one program reads the answer over the link.

    polls: reads after which the stream goes on without an answer, and `state[1]` is 1. A `Watch` answers late calls
    too, so that happens only where its thread does not run.   For the rest see `ask`.
    """
    _check(flags, state)
    await_launch(flags, state, polls).run()


def _check(flags: Tensor, state: Tensor) -> None:
    check("flags", flags, (2,), torch.int32)
    check("state", state, (2,), torch.int32)
