"""The order of the GPU benchmark's cases, with runs that are made up."""

import time
from dataclasses import replace

import pytest

from scoutattention.bench.gpu import rounds as gpu_rounds
from scoutattention.bench.gpu.cases import AS_MANY, MOST_AT_ONCE, LeftOut, Measured, Result, rivals
from scoutattention.bench.gpu.rounds import measure

from .test_gpu_decode import BASE, NAMES, make_bench

FULL, RESIDENT, FETCH = rivals(BASE)[:3]
AHEAD = rivals(BASE)[3]


def result(name, context, batch):
    return Result(name, context, batch, *[0.0] * (len(Result._fields) - 3))


@pytest.fixture
def cases(monkeypatch):
    """Has sequences of more tokens than this not fit by name: `room` as planned, `memory` when it is tried."""
    ran, room, memory = [], {}, {}

    def check_room(bench, rival, case):
        if case[0] * case[1] > room.get(rival.name, 1 << 30):
            raise MemoryError("planned")

    def run_together(bench, sharing, case):
        ran.append((sharing[0].name, *case))
        for rival in sharing:
            fits = case[0] * case[1] <= memory.get(rival.name, 1 << 30)
            yield result(rival.name, *case) if fits else LeftOut(rival.name, *case, "memory: full")

    monkeypatch.setattr(gpu_rounds, "check_room", check_room)
    monkeypatch.setattr(gpu_rounds, "run_together", run_together)
    return ran, room, memory


def told_bench(*args):
    told = []
    return replace(make_bench(*args), tell=told.append), told


def test_every_round_takes_the_next_smaller_batch_of_each(cases):
    """Full attention has room for one sequence at the longer context, and the others for two."""
    ran, room, _ = cases
    room.update(full=512, fetch=1024)
    bench, told = told_bench((512, 256), (1, 2, 4))
    measured = measure(bench, (FULL, FETCH, AHEAD))
    first = [("full", 512, 1), ("fetch", 512, 2), ("full", 256, 2), ("fetch", 256, 4)]
    second = [("fetch", 512, 1), ("full", 256, 1), ("fetch", 256, 2)]
    assert ran == [*first, *second, ("fetch", 256, 1)]
    why = "memory: planned"
    without = [("full", 512, 2), ("fetch", 512, 4), ("fetch-ahead", 512, 4), ("full", 256, 4)]
    assert measured.left_out == [LeftOut(*case, why) for case in without]
    assert told == [*measured.left_out, *measured.results]
    assert measured.not_started == 0


def test_what_does_not_fit_after_all_makes_room_for_a_smaller_batch_at_once(cases):
    ran, _, memory = cases
    memory.update(full=256, fetch=512)
    bench, told = told_bench((256,), (1, 2, 4))
    measured = measure(bench, (FULL, FETCH, AHEAD))
    assert ran == [("full", 256, n) for n in (4, 2, 1)] + [("fetch", 256, n) for n in (4, 2, 1)]
    assert [(one.engine, one.batch) for one in measured.smallest_left_out] == [("full", 2), ("fetch", 4)]
    assert len(told) == 9


def test_an_engine_that_fails_keeps_its_turn(cases, monkeypatch):
    """What failed is no reason to try a smaller batch before the others had their turns."""
    ran = []

    def run_together(bench, sharing, case):
        ran.append((sharing[0].name, case[1]))
        yield LeftOut(sharing[0].name, *case, "failed: RuntimeError: a bug")

    monkeypatch.setattr(gpu_rounds, "run_together", run_together)
    measured = measure(told_bench((256,), (1, 2))[0], (FULL, RESIDENT))
    assert ran == [("full", 2), ("resident", 2), ("full", 1), ("resident", 1)]
    assert [one.batch for one in measured.smallest_left_out] == [1, 1]


def test_what_never_started_is_counted(cases, monkeypatch):
    """Time for the two batches of full attention, and for one of the two rivals of the next store."""
    _, _, memory = cases
    memory.update(full=256)
    bench, told = told_bench((256,), (1, 2, 4))
    monkeypatch.setattr(gpu_rounds.time, "perf_counter", lambda: bench.until if len(told) >= 3 else 0.0)
    measured = measure(bench, (FULL, FETCH, AHEAD))
    assert len(told) == 3
    assert measured.not_started == 3 * 3 - 3


def test_failures_and_want_of_memory_are_told_apart():
    left = [LeftOut("full", 256, batch, why) for batch in (4, 2, 8) for why in ("memory: a", "failed: b")]
    assert [one.why for one in Measured([], left, 0).smallest_left_out] == ["memory: a", "failed: b"]
    assert {one.batch for one in Measured([], left, 0).smallest_left_out} == {2}


def test_without_room_nothing_runs(cases):
    ran, room, _ = cases
    room.update(dict.fromkeys(NAMES, 0))
    measured = measure(make_bench((256,), (1, 2), until=time.perf_counter() + 9), rivals(BASE))
    assert ran == measured.results == []
    assert [one.batch for one in measured.left_out] == [1] * len(NAMES)


def test_as_many_as_fit_are_found_for_each_store(cases):
    """The most that fit for all rivals of a store, beside the batches that are named."""
    ran, room, _ = cases
    room.update(full=256 * 7, fetch=256 * 37 + 255)
    room["fetch-ahead"] = 256 * 30
    measured = measure(told_bench((256,), (2, AS_MANY))[0], (FULL, FETCH, AHEAD))
    assert ran == [("full", 256, 7), ("fetch", 256, 30), ("full", 256, 2), ("fetch", 256, 2)]
    assert not measured.left_out


def test_as_many_as_are_looked_for(cases):
    ran, room, _ = cases
    room.update(full=0)
    measured = measure(told_bench((256,), (AS_MANY,))[0], (FULL, FETCH))
    assert ran == [("fetch", 256, MOST_AT_ONCE)]
    assert [(one.engine, one.batch) for one in measured.left_out] == [("full", 1)]
