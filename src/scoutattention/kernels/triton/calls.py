"""Calls from a kernel to the CPU and back, by flags in pinned host memory: a call is raised, and its answer awaited.

Loads and stores of flags are of system scope, so that what was written before a flag is seen by who has seen the flag.
"""

import math
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import KernelError
from ...types import CallFlags
from ..requests import TakeRequest
from .base import INTERPRETED, Launch, ceil_div, check, padded, tl, triton

CHUNK = 1024
"""Numbers that are written at a time."""
TAKEN = 2048
"""Numbers of the CPU's result that a program copies at a time."""
LONGEST_S = 86_400.0
PTX = not INTERPRETED and torch.version.hip is None
"""Whether kernels are compiled for NVIDIA's GPUs; elsewhere, atomic operations stand for loads and stores of flags."""


class Taking(NamedTuple):
    """A call whose result is taken beside attention.   taken: where to, float32 on the device."""

    call: TakeRequest
    taken: Tensor


if INTERPRETED:

    def now_ns(PTX: bool) -> int:
        """Nanoseconds on a clock that goes on."""
        return time.monotonic_ns()

    def pause(PTX: bool) -> None:
        """Let others work for a moment."""
        time.sleep(1e-6)

else:

    @triton.jit
    def now_ns(PTX: tl.constexpr) -> tl.tensor:
        """Nanoseconds on a clock that goes on."""
        if PTX:
            now = tl.inline_asm_elementwise(
                "mov.u64 $0, %globaltimer;", "=l", [], dtype=tl.int64, is_pure=False, pack=1
            )
        else:  # ticks of 100 MHz
            ticks = tl.inline_asm_elementwise(
                "s_memrealtime $0\ns_waitcnt lgkmcnt(0)", "=s", [], dtype=tl.int64, is_pure=False, pack=1
            )
            now = ticks * 10
        return now

    @triton.jit
    def pause(PTX: tl.constexpr) -> None:
        """Let others work for a moment."""
        if PTX:
            tl.inline_asm_elementwise(
                "nanosleep.u32 100; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
            )


@triton.jit
def load_acquire(word: tl.tensor, PTX: tl.constexpr) -> tl.tensor:
    """A flag, before all that is read later."""
    if PTX:
        value = tl.inline_asm_elementwise(
            "ld.acquire.sys.global.b32 $0, [$1];", "=r,l", [word], dtype=tl.int32, is_pure=False, pack=1
        )
    else:
        value = tl.atomic_add(word, 0, sem="acquire", scope="sys")
    return value


@triton.jit
def store_release(word: tl.tensor, value: tl.tensor, PTX: tl.constexpr) -> None:
    """Set a flag, after all that was written before."""
    if PTX:
        tl.inline_asm_elementwise(
            "st.release.sys.global.b32 [$1], $2; mov.u32 $0, 0;",
            "=r,l,r",
            [word, value],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        tl.atomic_xchg(word, value, sem="release", scope="sys")


@triton.jit
def raise_flag(called: tl.tensor, counts: tl.tensor, PTX: tl.constexpr) -> None:
    """The last of a kernel's programs to come here makes a new call, which finds what all of them have written."""
    tl.debug_barrier()
    arrived = tl.atomic_add(counts, 1, sem="acq_rel", scope="sys") + 1
    if arrived == tl.num_programs(0) * tl.num_programs(1):
        number = tl.load(counts + 1) + 1
        tl.store(counts, 0)
        tl.store(counts + 1, number)
        store_release(called, number, PTX)


@triton.jit
def _wait(
    answered: tl.tensor,
    waited: tl.tensor,
    counts: tl.tensor,
    late: tl.tensor,
    gave_up: tl.tensor,
    line: int,
    patience: int,
    BESIDE: tl.constexpr,
    PTX: tl.constexpr,
) -> tl.tensor:
    """Wait for the answer to a call, so many milliseconds at most; says whether it is there.

    What is waited BESIDE attention counts from where that has ended.
    """
    number = tl.load(counts + 1)
    given_up = tl.load(gave_up) != 0
    begin = now_ns(PTX)
    end = begin + tl.where(given_up, 0, patience).to(tl.int64) * 1_000_000
    now = begin
    answer = load_acquire(answered, PTX)
    while (answer != number) & (now < end):
        pause(PTX)
        answer = load_acquire(answered, PTX)
        now = now_ns(PTX)
        if BESIDE:
            begin = tl.where(load_acquire(counts + 3, PTX) == number, begin, now)
    tl.store(waited, now - begin)
    if (answer != number) & (given_up == 0):
        tl.store(late, line)
        tl.store(gave_up, 1)
    return answer == number


@triton.jit
def take_part(
    result: tl.tensor,
    answered: tl.tensor,
    waited: tl.tensor,
    counts: tl.tensor,
    late: tl.tensor,
    gave_up: tl.tensor,
    taken: tl.tensor,
    line: int,
    patience: int,
    size: int,
    first_lse: int,
    each: int,
    CHUNK: tl.constexpr,
    PTX: tl.constexpr,
) -> None:
    """Program (n): the n-th `each` numbers of the result, once they are there, or those of no keys.

    The first program alone looks at host memory, and tells the others: every look of theirs would cross the link.
    """
    number = tl.load(counts + 1)
    if tl.program_id(0) == 0:
        there = _wait(answered, waited, counts, late, gave_up, line, patience, True, PTX)
        tl.atomic_xchg(counts + 2, tl.where(there, number, -number), sem="release", scope="gpu")
    ended = load_acquire(counts + 2, PTX)
    while (ended != number) & (ended != -number):
        pause(PTX)
        ended = load_acquire(counts + 2, PTX)
    begin = tl.program_id(0) * each
    end = tl.minimum(begin + each, size)
    for start in range(begin, end, CHUNK):
        n = start + tl.arange(0, CHUNK)
        numbers = tl.load(result + n, mask=n < tl.where(ended == number, end, 0), other=0.0)
        nothing = tl.where(n < tl.where(ended == number, size, first_lse), 0.0, float("-inf"))
        tl.store(taken + n, numbers + nothing, mask=n < end)


@triton.jit(do_not_specialize=["line"], do_not_specialize_on_alignment=["answered", "waited", "counts"])
def _take_kernel(
    result: tl.tensor,
    answered: tl.tensor,
    waited: tl.tensor,
    counts: tl.tensor,
    late: tl.tensor,
    gave_up: tl.tensor,
    line: int,
    patience: int,
    size: int,
    first_lse: int,
    CHUNK: tl.constexpr,
    PTX: tl.constexpr,
) -> None:
    """One program: waits, so many milliseconds at most, and writes the result of no keys where there is none."""
    there = _wait(answered, waited, counts, late, gave_up, line, patience, False, PTX)
    if there == 0:
        for start in range(0, size, CHUNK):
            n = start + tl.arange(0, CHUNK)
            tl.store(result + n, tl.where(n < first_lse, 0.0, float("-inf")), mask=n < size)


def take_launch(result: Tensor, flags: CallFlags, rows: int, timeout_s: float, *, ptx: bool = PTX) -> Launch:
    """The launch of `take_call`."""
    arguments = take_arguments(TakeRequest(result, flags, rows, timeout_s))
    return Launch(_take_kernel, (1,), arguments, {"CHUNK": CHUNK, "PTX": ptx}, warps=1)


def take_arguments(call: TakeRequest) -> tuple[Tensor | int, ...]:
    """What is taken, its flags, and numbers: line, milliseconds, numbers of the result, and those before its lse."""
    size = call.result.numel()
    numbers = (call.flags.line, math.ceil(call.timeout_s * 1e3), size, size - call.rows)  # arguments have 32 bits
    return (call.result, *call.flags[1:6], *numbers)


def taking_arguments(
    taking: Taking | None, unused: Tensor, programs: int, *, ptx: bool
) -> tuple[tuple[Tensor | int, ...], dict[str, Any]]:
    """What a kernel passes on to `take_part`, which so many programs run, and its constants.

    unused: stands for tensors where nothing is taken.
    """
    each = 0
    arguments: tuple[Tensor | int, ...] = (*(unused,) * 6, 0, 0, 0, 0, unused)
    if taking is not None:
        each = ceil_div(taking.call.result.numel(), 16 * programs) * 16  # so that reads begin at whole lines
        arguments = (*take_arguments(taking.call), taking.taken)
    constants = {"TAKES": taking is not None, "CHUNK": min(TAKEN, padded(max(1, each))), "PTX": ptx}
    return (*arguments, each), constants


def check_flags(flags: CallFlags) -> None:
    """Refuse flags that a kernel cannot use.   Raises KernelError."""
    for name, size, dtype in (("called", 1, torch.int32), ("answered", 1, torch.int32), ("counts", 4, torch.int32)):
        check(f"flags.{name}", getattr(flags, name), (size,), dtype)
    for name in ("late", "gave_up"):
        check(f"flags.{name}", getattr(flags, name), (1,), torch.int32)
    check("flags.waited", flags.waited, (1,), torch.int64)


def take_call(result: Tensor, flags: CallFlags, rows: int, timeout_s: float) -> Tensor:
    """Wait for the CPU's result, in one launch; the twin of `plain.take_call`.

    Returns `result` itself, in the host's pinned memory: the kernel that joins it reads it there once.
    Raises KernelError where a tensor does not fit, or the time is none.
    """
    check_take(result, flags, timeout_s)
    take_launch(result, flags, rows, timeout_s).run()
    return result


def check_take(result: Tensor, flags: CallFlags, timeout_s: float) -> None:
    """Refuse what a kernel cannot take.   Raises KernelError."""
    check_flags(flags)
    check("result", result, (None,), torch.float32)
    if not 0 < timeout_s <= LONGEST_S:
        raise KernelError(f"timeout_s={timeout_s} is outside 0..{LONGEST_S:g} seconds: set how long a kernel waits")
