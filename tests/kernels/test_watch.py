"""Handovers that are asked for by numbers in memory: the host's thread, and the device's kernels in the interpreter."""

import threading
import time

import pytest
import torch
from torch import Tensor

from scoutattention.errors import KernelError
from scoutattention.kernels import cpu
from scoutattention.kernels.handover import Handover
from scoutattention.kernels.host_functions import InlineStream
from scoutattention.kernels.triton_flags import ask, await_answer
from scoutattention.kernels.watch import Watch

from .cases import Case, assert_close, exact, make_call
from .handovers import DELAY, LONG, assert_nothing, fixed, hand_over

POLLS = 50_000  # seconds, in the interpreter


def answered(flags: Tensor, number: int, within_s: float = 5.0) -> bool:
    """Whether every handover has answered with `number` in time."""
    end = time.perf_counter() + within_s
    while time.perf_counter() < end:
        if (flags[:, 1] == number).all():
            return True
        time.sleep(1e-4)
    return False


def test_numbers_that_another_thread_writes_start_calls():
    calls = [fixed(make_call(LONG, torch.bfloat16, seed)) for seed in range(4)]
    flags = torch.zeros(4, 2, dtype=torch.int32)
    with cpu.Workers() as workers:
        handovers = [hand_over(workers, call, InlineStream()) for call in calls]
        watch = Watch(handovers, flags)

        def step(number: int) -> None:
            for call, flag in zip(calls, flags, strict=True):
                call.q.normal_()
                flag[0] = number

        for number in (1, 2, 3):
            device = threading.Thread(target=step, args=(number,))
            device.start()
            device.join()
            assert answered(flags, number)
            for call, handover in zip(calls, handovers, strict=True):
                handover.check()
                assert_close(handover.result, exact(call))
        time.sleep(0.01)  # until it naps
        flags[:, 0] = 4
        assert answered(flags, 4)
        watch.close()
        watch.close()
        flags[:, 0] = 5
        assert not answered(flags, 5, within_s=0.02), "a closed one answers nothing"


def test_failures_and_late_calls_are_answered_too():
    call, flags = fixed(make_call(LONG, torch.float32)), torch.zeros(1, 2, dtype=torch.int32)
    with cpu.Workers(1, delay_s=3 * DELAY) as workers:
        handover = hand_over(workers, call, InlineStream(), timeout_s=DELAY)
        watch = Watch([handover], flags)
        begin = time.perf_counter()
        flags[0, 0] = 1
        assert answered(flags, 1)
        assert DELAY <= time.perf_counter() - begin < 3 * DELAY
        assert_nothing(handover.result)
        with pytest.raises(KernelError, match=r"call 1 failed: (\d) of \1 .* 0\.2\d* s after it was started,"):
            handover.check()
        call.blocks.index[:] = -1
        flags[0, 0] = 2
        assert answered(flags, 2)
        with pytest.raises(KernelError, match="call 2 failed: block index -1"):
            handover.check()
        watch.close()


def test_a_watch_outlives_its_handovers():
    flags = torch.zeros(1, 2, dtype=torch.int32)
    with cpu.Workers() as workers:
        watch = Watch([hand_over(workers, make_call(LONG, torch.float32), InlineStream())], flags)
        flags[0, 0] = 1
        assert answered(flags, 1)
        watch.close()


def test_one_call_does_not_hold_up_another():
    """The first takes long, and the second, which has no keys, is answered at once."""
    calls = [make_call(LONG, torch.float32), make_call(Case("nothing", lengths=(0,)), torch.float32)]
    flags = torch.zeros(2, 2, dtype=torch.int32)
    with cpu.Workers(1, delay_s=DELAY) as workers:
        handovers = [hand_over(workers, call, InlineStream()) for call in calls]
        watch = Watch(handovers, flags)
        flags[:, 0] = 1
        assert answered(flags[1:], 1, within_s=DELAY / 2)
        assert flags[0, 1] == 0
        assert answered(flags, 1)
        assert_close(handovers[0].result, exact(calls[0]))
        watch.close()


def test_the_device_asks_and_takes():
    """The kernels in the interpreter, against the host's thread: three replays, then one that nobody answers."""
    call = make_call(LONG, torch.float32)
    flags, state = torch.zeros(1, 2, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    with cpu.Workers(1, delay_s=DELAY / 10) as workers:
        handover = hand_over(workers, call, InlineStream())
        watch = Watch([handover], flags)
        for number in (1, 2, 3):
            ask(flags[0], state)
            await_answer(flags[0], state, polls=POLLS)
            assert flags.tolist() == [[number, number]]
            assert state.tolist() == [number, 0]
        handover.check()
        assert_close(handover.result, exact(call))
        watch.close()
    ask(flags[0], state)
    await_answer(flags[0], state, polls=20)
    assert state.tolist() == [4, 1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (torch.zeros(1, 2), r"torch\.float32 \[1, 2\]"),
        (torch.zeros(2, 2, dtype=torch.int32), r"must be int32 \[1, 2\]"),
        (torch.zeros(1, 4, dtype=torch.int32)[:, ::2], r"strides \(4, 2\)"),
        (torch.ones(1, 2, dtype=torch.int32), "numbers in it"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message):
    with cpu.Workers() as workers:
        handover: Handover = hand_over(workers, make_call(LONG, torch.float32), InlineStream())
        with pytest.raises(KernelError, match=message):
            Watch([handover], flags)


def test_numbers_of_another_dtype_are_refused():
    with pytest.raises(KernelError, match=r"state is torch\.int64: it must be torch\.int32"):
        ask(torch.zeros(2, dtype=torch.int32), torch.zeros(2, dtype=torch.int64))
