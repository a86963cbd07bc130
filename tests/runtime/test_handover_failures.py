"""Handovers that are refused, late, broken off, closed or dropped, and what a stream still calls of them."""

import time
import weakref

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.runtime import workers as cpu
from scoutattention.runtime.host_functions import InlineStream

from ..kernels.cases import assert_close, exact, make_call
from .handovers import DELAY, LONG, assert_nothing, fixed, run, stage_call


@pytest.mark.parametrize(
    ("table", "value", "message"),
    [
        ("index", 200, "call 2 failed: block index 200 is outside 0..199, the pages of the pool"),
        ("index", -1, "call 2 failed: block index -1 is outside"),
        ("length", 33, "call 2 failed: block length 33 is outside 0..32, the positions of a page"),
        ("length", -1, "call 2 failed: block length -1 is outside"),
    ],
)
def test_a_list_that_is_out_of_range_fails_without_results(table, value, message):
    call = fixed(make_call(LONG, torch.float32))
    with cpu.Workers() as workers:
        handover = stage_call(workers, call, InlineStream())
        run(handover)
        place = getattr(call.blocks, table)[0, 1, 7]
        good = place.clone()
        place.fill_(value)
        run(handover)
        assert_nothing(handover.result)
        assert handover.failure().startswith(message)
        with pytest.raises(KernelError, match=r"^far attention on the CPU: call 2 failed"):
            handover.check()
        place.copy_(good)
        run(handover)
        handover.check()
        assert_close(handover.result, exact(call))


def test_only_the_first_failure_is_kept():
    call = fixed(make_call(LONG, torch.float32))
    with cpu.Workers() as workers:
        handover = stage_call(workers, call, InlineStream())
        handover.wait()
        call.blocks.index[:] = -1
        run(handover)
        assert handover.failure() == "call 0 failed: it was waited for before it was started"


def test_a_late_call_lets_the_stream_go_on_and_never_writes(runtime):
    call, stream = make_call(LONG, torch.float32), runtime.stream()
    with cpu.Workers(1, delay_s=3 * DELAY) as workers:
        handover = stage_call(workers, call, runtime.functions, timeout_s=DELAY)
        begin = time.perf_counter()
        handover.start(stream.handle)
        stream.queue(lambda: time.sleep(DELAY / 4))  # until the worker sleeps in the first task
        handover.wait(stream.handle)
        stream.synchronize()
        assert DELAY < time.perf_counter() - begin < 2.5 * DELAY
        assert_nothing(handover.result)
        handover.close()
        assert time.perf_counter() - begin >= 3 * DELAY, "it lives until it has ended"
        assert_nothing(handover.result)
    tasks = r"1 of (\d) tasks were left, and \1 had begun"
    with pytest.raises(KernelError, match=rf"call 1 failed: {tasks}, 0\.2\d* s after .* timeout_s is 0\.2$"):
        handover.check()


def test_after_a_late_call_the_next_is_right(runtime):
    call, stream = make_call(LONG, torch.float32), runtime.stream()
    with cpu.Workers(1, delay_s=DELAY) as workers:
        late = stage_call(workers, call, runtime.functions, timeout_s=DELAY / 10)
        late.start(stream.handle)
        stream.queue(lambda: time.sleep(DELAY / 10))
        late.wait(stream.handle)
        stream.queue(lambda: time.sleep(2 * DELAY))
        late.start(stream.handle)
        stream.queue(lambda: time.sleep(2 * DELAY))
        late.wait(stream.handle)
        stream.synchronize()
        assert late.failure().startswith("call 1 failed")
        assert_close(late.result, exact(call))


def test_what_a_broken_off_step_started_is_dropped_by_the_next():
    call = fixed(make_call(LONG, torch.float32))
    with cpu.Workers(1, delay_s=DELAY) as workers:
        handover = stage_call(workers, call, InlineStream())
        handover.start()
        time.sleep(DELAY / 4)
        call.blocks.length[:, 1:] = 0
        run(handover)
        handover.check()
        assert_close(handover.result, exact(call))


def test_a_stream_outlives_its_handovers(runtime):
    """Dropped with a start running and calls queued: those do nothing, and the tensors go when the start has ended."""
    call, stream, graph = make_call(LONG, torch.float32), runtime.stream(), []
    alive = weakref.ref(call.k)
    with cpu.Workers(1, delay_s=DELAY) as workers:
        handover = stage_call(workers, call, runtime.functions)
        result = handover.result
        begin = time.perf_counter()
        handover.start(stream.handle)
        stream.synchronize()
        stream.queue(lambda: time.sleep(2 * DELAY))
        runtime.graph = graph
        handover.wait(stream.handle)
        handover.start(stream.handle)
        runtime.graph = None
        runtime.replay(graph, stream)
        time.sleep(DELAY / 4)  # until the worker sleeps in the first task
        del call, handover
        assert time.perf_counter() - begin >= DELAY
        assert alive() is None
        result.out.fill_(7)
        stream.synchronize()
        runtime.replay(graph, stream)
        stream.synchronize()
        assert (result.out == 7).all()


def test_workers_closed_while_a_call_runs():
    call = make_call(LONG, torch.float32)
    workers = cpu.Workers(1, delay_s=DELAY)
    handover = stage_call(workers, call, InlineStream())
    handover.start()
    workers.close()
    handover.wait()
    handover.check()
    assert handover.waited_s < DELAY / 4
    assert_close(handover.result, exact(call))
    run(handover)
    assert_nothing(handover.result)
    with pytest.raises(KernelError, match="call 2 failed: the workers were closed before this job was submitted"):
        handover.check()


def test_workers_dropped_before_their_handover():
    call = make_call(LONG, torch.float32)
    handover = stage_call(cpu.Workers(), call, InlineStream())
    run(handover)
    handover.check()
    assert_close(handover.result, exact(call))


def test_the_runtime_refuses(runtime):
    call = make_call(LONG, torch.float32)
    with (
        cpu.Workers() as workers,
        pytest.raises(KernelError, match=r"refused a host function on stream 0x30: error 700"),
    ):
        stage_call(workers, call, runtime.functions).start(0x30)
