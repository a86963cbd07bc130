"""Far partials that a device calls for and waits for, by flags that a native thread looks at."""

import time

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.runtime import workers as cpu
from scoutattention.runtime.handover import LINES, FlagTable, Handover, PartialCall
from scoutattention.runtime.packed import pack
from scoutattention.types import BlockList, Partial

from ..kernels.cases import CASES, assert_close, exact, make_call
from .handovers import DELAY, LONG, Device, assert_nothing, fixed, numbers_of, split


def assert_same(got: Partial, want: Partial) -> None:
    for mine, theirs in zip(got, want, strict=True):
        assert mine is theirs is None or torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_results_are_those_of_a_plain_partial(case, dtype):
    call = make_call(case, dtype)
    with cpu.Workers() as workers:
        want = workers.partial(call.q, call.k, call.v, call.blocks, call.scale, with_mean_key=True)
        assert_same(Device(workers, call).run(), want)


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_pools(bits):
    call = make_call(LONG, torch.float32)
    k, v = pack(call.k, bits, by_token=False), pack(call.v, bits, by_token=True)
    with cpu.Workers() as workers:
        device = Device(workers, PartialCall(call.q, k, v, call.blocks, call.scale))
        assert_same(device.run(), workers.partial(call.q, k, v, call.blocks, call.scale, with_mean_key=True))


def test_a_device_works_on_while_the_cpu_attends():
    call = make_call(LONG, torch.float32)
    with cpu.Workers(1, delay_s=DELAY) as workers:
        device = Device(workers, call)
        begin = time.perf_counter()
        device.start()
        time.sleep(DELAY / 2)
        got = device.wait()
        assert time.perf_counter() - begin < 1.5 * DELAY
        report = device.handover.report()
    assert_close(got, exact(call))
    assert begin <= report.started_s < begin + DELAY / 2
    assert report.ran_s >= DELAY
    assert DELAY / 4 < report.waited_s < report.ran_s
    assert report.failure == ""


def test_every_call_reads_what_the_tensors_hold_then():
    calls = [fixed(make_call(LONG, torch.float32, seed)) for seed in range(5)]
    mine = calls[0]
    with cpu.Workers() as workers:
        device = Device(workers, mine)
        for other in calls[1:]:
            mine.q.copy_(other.q)
            for table, new in zip(mine.blocks, other.blocks, strict=True):
                table.copy_(new)
            assert_close(device.run(), exact(mine))
        assert device.handover.number == 4


def test_several_calls_in_flight():
    calls = [make_call(LONG, torch.bfloat16, seed) for seed in range(6)]
    table = FlagTable(torch.device("cpu"))
    with cpu.Workers() as workers:
        devices = [Device(workers, call, table=table) for call in calls]
        for _ in range(20):
            for device in devices:
                device.start()
            for call, device in reversed(list(zip(calls, devices, strict=True))):
                assert_close(device.wait(), exact(call))


def test_a_list_without_keys_costs_next_to_nothing_and_clears_what_was_there():
    call = fixed(make_call(LONG, torch.float32))
    keys = call.blocks.length.clone()
    with cpu.Workers(1, delay_s=DELAY) as workers:
        device = Device(workers, call)
        for length in (torch.zeros_like(keys), keys, torch.zeros_like(keys)):
            call.blocks.length.copy_(length)
            device.run()
        begin = time.perf_counter()
        for _ in range(10):
            assert_nothing(device.run())
        assert time.perf_counter() - begin < DELAY / 4
        assert device.handover.report()[:2] == (0, 0)
        assert device.handover.pages == 0


def test_a_table_has_room_for_any_number_of_calls():
    table = FlagTable(torch.device("cpu"))
    flags = [table.add() for _ in range(LINES + 2)]
    assert [one.line for one in flags] == list(range(1, LINES + 3))
    for name in ("called", "answered", "waited", "counts"):
        assert len({getattr(one, name).data_ptr() for one in flags}) == LINES + 2
    assert flags[1].called.data_ptr() - flags[0].called.data_ptr() == 4
    call = make_call(LONG, torch.float32)
    with cpu.Workers() as workers:
        assert_close(Device(workers, call, table=table).run(), exact(call))


def test_calls_that_were_made_in_a_step_are_known():
    table = FlagTable(torch.device("cpu"))
    flags = [table.add() for _ in range(LINES + 2)]
    for one in (flags[0], flags[LINES]):
        one.called.fill_(1)
    table.begin()
    assert table.made() == []
    for one in (flags[7], flags[LINES - 1], flags[LINES + 1]):
        one.called.fill_(1)
    assert table.made() == [8, LINES, LINES + 2]
    table.begin()
    assert table.made() == []


def test_between_steps_nothing_is_called_and_no_time_is_taken():
    call = make_call(LONG, torch.float32)
    with cpu.Workers(1) as workers:
        device = Device(workers, call)
        device.table.end()
        time.sleep(DELAY / 4)
        device.start()
        begin = time.process_time()
        time.sleep(DELAY)
        assert time.process_time() - begin < DELAY / 4
        assert device.handover.flags.answered.item() == 0
        device.table.begin()
        assert_close(device.wait(), exact(call))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"q": torch.zeros(1, 3, 3, 64, dtype=torch.bfloat16)},
            r"q is torch\.bfloat16 .* must be torch\.float32 .* contiguous",
        ),
        ({"q": torch.zeros(1, 3, 64, 3).mT}, r"q is .* strides \(576, 192, 1, 3\)"),
        ({"result": Partial(torch.zeros(1, 3, 3, 63), torch.zeros(1, 3, 3))}, r"result\.out is .*\[1, 3, 3, 64\]"),
        ({"result": Partial(torch.zeros(1, 3, 3, 64), torch.zeros(1, 3, 4))}, r"result\.lse is"),
        (
            {"result": Partial(torch.zeros(1, 3, 3, 64), torch.zeros(1, 3, 3), torch.zeros(1, 3, 3, 64).double())},
            r"result\.mean_key is torch\.float64",
        ),
        ({"k": torch.zeros(200, 2, 32, 64)}, "with the same H and D"),
        ({"blocks": BlockList(torch.zeros(1, 3, 4), torch.zeros(1, 3, 4))}, r"blocks\.index is torch\.float32"),
        ({"blocks": BlockList(torch.zeros(1, 3, 4).int(), torch.zeros(1, 3, 5).int())}, r"blocks\.length is"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message):
    call = make_call(LONG, torch.float32)
    tensors = {"q": call.q, "k": call.k, "v": call.v, "blocks": call.blocks, **change}
    result = tensors.pop("result", split(numbers_of(call), call.q.shape))
    table = FlagTable(torch.device("cpu"))
    with cpu.Workers() as workers, pytest.raises(KernelError, match=message):
        Handover(workers, PartialCall(**tensors, scale=call.scale), result, table)
