"""Far partials that streams start and wait for: on threads that stand for streams, behind a runtime's C function."""

import time

import pytest
import torch

from scoutattention.errors import ConfigError, KernelError
from scoutattention.runtime import workers as cpu
from scoutattention.runtime.handover import Handover, PartialCall
from scoutattention.runtime.host_functions import InlineStream
from scoutattention.runtime.packed import pack
from scoutattention.types import BlockList, Partial

from ..kernels.cases import CASES, assert_close, exact, make_call
from .handovers import DELAY, LONG, assert_nothing, fixed, result_of, run, stage_call


def assert_same(got: Partial, want: Partial) -> None:
    for mine, theirs in zip(got, want, strict=True):
        assert mine is theirs is None or torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_results_are_those_of_a_plain_partial(case, dtype):
    call = make_call(case, dtype)
    with cpu.Workers() as workers:
        handover = stage_call(workers, call, InlineStream())
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
        handover = stage_call(workers, call, runtime.functions)
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
        handover = stage_call(workers, mine, runtime.functions)
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
        handovers = [stage_call(workers, call, runtime.functions) for call in calls]
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
        handover = stage_call(workers, call, InlineStream())
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
    result = tensors.pop("result", result_of(call))
    with cpu.Workers() as workers, pytest.raises(KernelError, match=message):
        Handover(workers, PartialCall(**tensors, scale=call.scale), result, functions=InlineStream())


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_times_that_do_not_fit_are_refused(timeout_s):
    with cpu.Workers() as workers, pytest.raises(ConfigError, match=r"is outside 0\.\.86400 seconds"):
        stage_call(workers, make_call(LONG, torch.float32), InlineStream(), timeout_s)
