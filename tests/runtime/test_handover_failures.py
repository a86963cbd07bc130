"""Handovers that are refused, late, broken off, closed or dropped, and what a device still calls of them."""

import time
import weakref
from types import SimpleNamespace

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.runtime import workers as cpu
from scoutattention.runtime.handover import FlagTable

from ..kernels.cases import assert_close, exact, make_call
from .handovers import DELAY, LONG, Device, assert_nothing, fixed


@pytest.mark.parametrize(
    ("table", "value", "message"),
    [
        ("index", 200, "block index 200 is outside 0..199, the pages of the pool"),
        ("index", -1, "block index -1 is outside"),
        ("length", 33, "block length 33 is outside 0..32, the positions of a page"),
        ("length", -1, "block length -1 is outside"),
    ],
)
def test_a_list_that_is_out_of_range_fails_without_results(table, value, message):
    call = fixed(make_call(LONG, torch.float32))
    with cpu.Workers() as workers:
        device = Device(workers, call)
        device.run()
        place = getattr(call.blocks, table)[0, 1, 7]
        good = place.clone()
        place.fill_(value)
        assert_nothing(device.run())
        place.copy_(good)
        assert_close(device.run(), exact(call))
        assert device.handover.report().failure.startswith(message), "it is kept"
        device.handover.forget()
        assert device.handover.report().failure == ""


def test_only_the_first_failure_is_kept():
    call = fixed(make_call(LONG, torch.float32))
    with cpu.Workers() as workers:
        device = Device(workers, call)
        for value in (-1, -2):
            call.blocks.index[:] = value
            device.run()
        assert device.handover.report().failure.startswith("block index -1")


def test_a_late_call_lets_the_device_go_on_and_never_writes():
    call = make_call(LONG, torch.float32)
    with cpu.Workers(1, delay_s=3 * DELAY) as workers:
        device = Device(workers, call)
        begin = time.perf_counter()
        device.start()
        assert_nothing(device.wait(DELAY))
        assert DELAY < time.perf_counter() - begin < 2.5 * DELAY
        assert device.table.take_late() == device.handover.flags.line
        reached = device.handover.give_up()
        device.handover.close()
        assert time.perf_counter() - begin >= 3 * DELAY, "it lives until it has ended"
        assert device.result.out.isnan().all()
        assert device.handover.flags.answered.item() == 0
    left, middle, begun = reached.split(" ")[0], reached.split(" ", 1)[1], reached.split()[-3]
    assert middle.startswith(f"of {left} tasks were left, and "), "one worker sleeps in the first"
    assert begun in {left, "1", "2", "3"}


def test_after_a_late_call_the_next_is_right():
    call = make_call(LONG, torch.float32)
    with cpu.Workers(1, delay_s=DELAY) as workers:
        device = Device(workers, call)
        device.start()
        assert_nothing(device.wait(DELAY / 10))
        assert device.table.take_late() == 1
        assert_close(device.run(), exact(call))
        assert device.table.take_late() == 0


def test_after_a_late_call_nothing_is_waited_for_until_it_is_noticed():
    call, table = make_call(LONG, torch.float32), FlagTable(torch.device("cpu"))
    with cpu.Workers(1, delay_s=DELAY) as workers:
        devices = [Device(workers, call, table=table) for _ in range(3)]
        for device in devices:
            device.start()
        begin = time.perf_counter()
        for device in devices:
            assert_nothing(device.wait(DELAY / 4))
        assert time.perf_counter() - begin < DELAY / 2
        assert table.take_late() == devices[0].handover.flags.line


def test_what_a_broken_off_step_left_is_forgotten_by_the_next():
    call = fixed(make_call(LONG, torch.float32))
    with cpu.Workers(1, delay_s=DELAY) as workers:
        device = Device(workers, call)
        device.start()
        assert_nothing(device.wait(DELAY / 10))
        call.blocks.length[:, 1:] = 0
        device.table.begin()
        assert_close(device.run(), exact(call))


def test_a_call_that_was_given_up_before_it_was_seen_is_never_begun():
    call = make_call(LONG, torch.float32)
    with cpu.Workers() as workers:
        device = Device(workers, call)
        device.table.end()
        device.start()
        assert device.handover.give_up() == "the CPU had not seen the call"
        device.table.begin()
        time.sleep(DELAY / 4)
        assert device.handover.flags.answered.item() == 0
        assert_close(device.run(), exact(call))
        assert device.handover.give_up() == "the CPU has answered by now"


def test_a_thread_that_has_ended_fails_the_step_and_the_next_step_has_another():
    call = make_call(LONG, torch.float32)
    table = FlagTable(torch.device("cpu"))
    thread = table.thread
    with cpu.Workers() as workers:
        device = Device(workers, call, table=table)
        table.thread = SimpleNamespace(end=thread.end, failure=lambda: "std::bad_alloc")
        with pytest.raises(KernelError, match=r"^the thread that takes .* calls for far attention ended: std::bad_all"):
            table.end()
        table.thread = thread
        table.begin()
        assert_close(device.run(), exact(call))
        table.end()


def test_a_closed_table_answers_nothing():
    call = make_call(LONG, torch.float32)
    with cpu.Workers() as workers:
        device = Device(workers, call)
        device.table.close()
        device.table.close()
        device.table.begin()
        device.start()
        assert_nothing(device.wait(DELAY / 10))


def test_a_device_outlives_its_handovers():
    """Dropped with a call running: calls do nothing from then on, and the tensors go when the call has ended."""
    call = make_call(LONG, torch.float32)
    alive = weakref.ref(call.k)
    with cpu.Workers(1, delay_s=DELAY) as workers:
        device = Device(workers, call)
        flags, numbers = device.handover.flags, device.numbers
        begin = time.perf_counter()
        device.start()
        time.sleep(DELAY / 4)  # until the worker sleeps in the first task
        del call
        device.handover = None
        assert time.perf_counter() - begin >= DELAY
        assert alive() is None
        flags.called.fill_(2)
        time.sleep(DELAY / 4)
        assert flags.answered.item() == 0
        assert numbers.isnan().all()


def test_workers_closed_while_a_call_runs():
    call = make_call(LONG, torch.float32)
    workers = cpu.Workers(1, delay_s=DELAY)
    device = Device(workers, call)
    device.start()
    time.sleep(DELAY / 4)
    workers.close()
    assert_close(device.wait(), exact(call))
    assert_nothing(device.run())
    assert device.handover.report().failure == "the workers were closed before this job was submitted"


def test_workers_dropped_before_their_handover():
    call = make_call(LONG, torch.float32)
    device = Device(cpu.Workers(), call)
    assert_close(device.run(), exact(call))
