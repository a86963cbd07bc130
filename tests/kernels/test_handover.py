"""Far partials that streams start and wait for: on threads that stand for streams, behind a runtime's C function."""

import time
import weakref
from dataclasses import replace

import pytest
import torch

from scoutattention.errors import ConfigError, KernelError
from scoutattention.kernels import cpu
from scoutattention.kernels.handover import Handover, PartialCall
from scoutattention.kernels.host_functions import HostQueue, InlineStream
from scoutattention.kernels.packed import pack
from scoutattention.types import BlockList, Partial

from .cases import CASES, Call, Case, assert_close, exact, make_call
from .streams import FakeRuntime

LONG = Case("long", H=3, S=200, N=200)
DELAY = 0.2


@pytest.fixture
def runtime():
    fake = FakeRuntime()
    yield fake
    fake.end()


def result_of(call: Call, with_mean_key: bool = True) -> Partial:
    """Memory that nobody has written to."""
    like = call.q.float()
    mean_key = torch.full_like(like, torch.nan) if with_mean_key else None
    return Partial(torch.full_like(like, torch.nan), torch.full(like.shape[:3], torch.nan), mean_key)


def fixed(call: Call) -> Call:
    """The call with lists of its own, whose values can be changed."""
    return replace(call, blocks=BlockList(*(table.clone() for table in call.blocks)))


def hand_over(workers: cpu.Workers, call: Call, functions: HostQueue, timeout_s: float = 10.0) -> Handover:
    fixed_call = PartialCall(call.q, call.k, call.v, call.blocks, call.scale)
    return Handover(workers, fixed_call, result_of(call), functions=functions, timeout_s=timeout_s)


def run(handover: Handover) -> None:
    handover.start()
    handover.wait()


def assert_nothing(result: Partial) -> None:
    assert not result.out.any()
    assert result.lse.isneginf().all()
    assert result.mean_key is None or not result.mean_key.any()


def assert_same(got: Partial, want: Partial) -> None:
    for mine, theirs in zip(got, want, strict=True):
        assert mine is theirs is None or torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_results_are_those_of_a_plain_partial(case, dtype):
    call = make_call(case, dtype)
    with cpu.Workers() as workers:
        handover = hand_over(workers, call, InlineStream())
        run(handover)
        handover.check()
        assert_same(
            handover.result, workers.partial(call.q, call.k, call.v, call.blocks, call.scale, with_mean_key=True)
        )


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_pools(bits):
    call = make_call(LONG, torch.float32)
    k, v = pack(call.k, bits, by_token=False), pack(call.v, bits, by_token=True)
    result = result_of(call, with_mean_key=False)
    with cpu.Workers() as workers:
        fixed_call = PartialCall(call.q, k, v, call.blocks, call.scale)
        handover = Handover(workers, fixed_call, result, functions=InlineStream())
        run(handover)
        handover.check()
        assert_same(result, workers.partial(call.q, k, v, call.blocks, call.scale))


def test_a_stream_works_on_while_the_cpu_attends(runtime):
    call, stream, seen = make_call(LONG, torch.float32), runtime.stream(), []
    with cpu.Workers(1, delay_s=DELAY) as workers:
        handover = hand_over(workers, call, runtime.functions)
        begin = time.perf_counter()
        handover.start(stream.handle)
        stream.queue(lambda: seen.append(time.perf_counter() - begin))
        stream.queue(lambda: time.sleep(DELAY / 2))
        handover.wait(stream.handle)
        stream.queue(lambda: seen.append(time.perf_counter() - begin))
        assert time.perf_counter() - begin < DELAY / 4, "whoever queues goes on at once"
        stream.synchronize()
        handover.check()
    assert seen[0] < DELAY / 4, "so does the stream"
    assert seen[1] >= DELAY
    assert_close(handover.result, exact(call))
    assert begin <= handover.started_s < begin + DELAY / 2
    assert handover.ran_s >= DELAY
    assert DELAY / 4 < handover.waited_s < handover.ran_s


def test_every_start_reads_what_the_tensors_hold_then(runtime):
    """As a captured graph does: two calls, replayed while the host changes tables and queries in between."""
    calls = [fixed(make_call(LONG, torch.float32, seed)) for seed in range(5)]
    mine, stream, graph = calls[0], runtime.stream(), []
    with cpu.Workers() as workers:
        handover = hand_over(workers, mine, runtime.functions)
        runtime.graph = graph
        handover.start(stream.handle)
        handover.wait(stream.handle)
        runtime.graph = None
        for other in calls[1:]:
            mine.q.copy_(other.q)
            for table, new in zip(mine.blocks, other.blocks, strict=True):
                table.copy_(new)
            runtime.replay(graph, stream)
            stream.synchronize()
            handover.check()
            assert_close(handover.result, exact(mine))


def test_several_handovers_in_flight_on_two_streams(runtime):
    calls = [make_call(LONG, torch.bfloat16, seed) for seed in range(6)]
    streams = [runtime.stream(), runtime.stream()]
    with cpu.Workers() as workers:
        handovers = [hand_over(workers, call, runtime.functions) for call in calls]
        for _ in range(20):
            for number, handover in enumerate(handovers):
                handover.start(streams[number % 2].handle)
            for number, handover in reversed(list(enumerate(handovers))):
                handover.wait(streams[number % 2].handle)
        for stream in streams:
            stream.synchronize()
        for call, handover in zip(calls, handovers, strict=True):
            handover.check()
            assert_close(handover.result, exact(call))


def test_a_list_without_keys_costs_next_to_nothing_and_clears_what_was_there():
    call = fixed(make_call(LONG, torch.float32))
    keys = call.blocks.length.clone()
    with cpu.Workers(1, delay_s=DELAY) as workers:
        handover = hand_over(workers, call, InlineStream())
        for length in (torch.zeros_like(keys), keys, torch.zeros_like(keys)):
            call.blocks.length.copy_(length)
            run(handover)
        begin = time.perf_counter()
        for _ in range(10):
            run(handover)
        assert time.perf_counter() - begin < DELAY / 4
        handover.check()
        assert_nothing(handover.result)
        assert (handover.started_s, handover.ran_s) == (0, 0)


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
        handover = hand_over(workers, call, InlineStream())
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
        handover = hand_over(workers, call, InlineStream())
        handover.wait()
        call.blocks.index[:] = -1
        run(handover)
        assert handover.failure() == "call 0 failed: it was waited for before it was started"


def test_a_late_call_lets_the_stream_go_on_and_never_writes(runtime):
    call, stream = make_call(LONG, torch.float32), runtime.stream()
    with cpu.Workers(1, delay_s=3 * DELAY) as workers:
        handover = hand_over(workers, call, runtime.functions, timeout_s=DELAY)
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
        late = hand_over(workers, call, runtime.functions, timeout_s=DELAY / 10)
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
        handover = hand_over(workers, call, InlineStream())
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
        handover = hand_over(workers, call, runtime.functions)
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
    handover = hand_over(workers, call, InlineStream())
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
    handover = hand_over(cpu.Workers(), call, InlineStream())
    run(handover)
    handover.check()
    assert_close(handover.result, exact(call))


def test_the_runtime_refuses(runtime):
    call = make_call(LONG, torch.float32)
    with (
        cpu.Workers() as workers,
        pytest.raises(KernelError, match=r"refused a host function on stream 0x30: error 700"),
    ):
        hand_over(workers, call, runtime.functions).start(0x30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(1, 3, 3, 64, dtype=torch.bfloat16)}, r"q is torch\.bfloat16 .* contiguous float32"),
        ({"q": torch.zeros(1, 3, 64, 3).mT}, r"q is .* strided \(576, 192, 1, 3\)"),
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
    result = tensors.pop("result", result_of(call))
    with cpu.Workers() as workers, pytest.raises(KernelError, match=message):
        Handover(workers, PartialCall(**tensors, scale=call.scale), result, functions=InlineStream())


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_times_that_do_not_fit_are_refused(timeout_s):
    with cpu.Workers() as workers, pytest.raises(ConfigError, match=r"is outside 0\.\.86400 seconds"):
        hand_over(workers, make_call(LONG, torch.float32), InlineStream(), timeout_s)
