"""The queue: order, helping, overlap, and what happens to jobs that nobody waits for."""

import threading
import time
import weakref

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.runtime import workers as cpu

from ..kernels.cases import Call, Case, assert_close, exact, make_call

LONG = Case("long", H=3, S=200, N=200)
DELAY = 0.2


def submit(workers: cpu.Workers, call: Call) -> cpu.Job:
    return workers.submit(call.q, call.k, call.v, call.blocks, call.scale, with_mean_key=True)


@pytest.mark.parametrize("threads", [None, 1])
def test_many_jobs_in_flight_waited_for_in_any_order(threads):
    calls = [make_call(LONG, torch.bfloat16, seed) for seed in range(12)]
    with cpu.Workers(threads) as workers:
        jobs = [submit(workers, call) for call in calls]
        for number in (11, 0, 7, 3, 10, 1, 9, 2, 8, 4, 6, 5):
            assert_close(jobs[number].wait(), exact(calls[number]))


def test_jobs_submitted_from_many_threads():
    call = make_call(LONG, torch.float32)
    want = exact(call)
    failures = []

    def use(workers: cpu.Workers) -> None:
        try:
            for _ in range(30):
                assert_close(submit(workers, call).wait(), want)
        except AssertionError as error:
            failures.append(error)

    with cpu.Workers() as workers:
        threads = [threading.Thread(target=use, args=(workers,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_waiting_twice_gives_the_same_result_at_once():
    with cpu.Workers(1, delay_s=DELAY) as workers:
        job = submit(workers, make_call(LONG, torch.float32))
        first, waited = job.wait(), job.waited_s
        assert job.wait() is first
        assert job.waited_s == waited


def test_work_overlaps_with_the_caller():
    with cpu.Workers(1, delay_s=DELAY) as workers:
        start = time.perf_counter()
        job = submit(workers, make_call(LONG, torch.float32))
        assert time.perf_counter() - start < DELAY / 2, "submit returns at once"
        time.sleep(3 * DELAY)
        job.wait()
        assert job.ran_s >= DELAY
        assert job.waited_s < DELAY / 4


def test_a_wait_that_comes_early_takes_as_long_as_the_work():
    with cpu.Workers(1, delay_s=DELAY) as workers:
        job = submit(workers, make_call(LONG, torch.float32))
        job.wait()
        assert DELAY / 2 < job.waited_s < 3 * DELAY


def test_the_waiting_thread_helps_its_own_job():
    """The only worker sleeps in the first job; the second is done without it, in its own delay alone."""
    with cpu.Workers(1, delay_s=DELAY) as workers:
        call = make_call(LONG, torch.float32)
        first = submit(workers, call)
        time.sleep(DELAY / 10)
        second = submit(workers, call)
        assert_close(second.wait(), exact(call))
        assert second.waited_s < 1.6 * DELAY
        assert_close(first.wait(), exact(call))


def test_jobs_run_in_the_order_they_were_submitted():
    """After two and a half delays the only worker has done the first two of three jobs, and nobody helped."""
    with cpu.Workers(1, delay_s=DELAY) as workers:
        call = make_call(LONG, torch.float32)
        jobs = [submit(workers, call) for _ in range(3)]
        time.sleep(2.5 * DELAY)
        jobs[1].wait()
        jobs[2].wait()
        assert jobs[1].waited_s < DELAY / 4 < jobs[2].waited_s


def test_python_runs_while_a_job_is_waited_for():
    ticks = 0
    done = threading.Event()

    def count() -> None:
        nonlocal ticks
        while not done.wait(DELAY / 40):
            ticks += 1

    with cpu.Workers(1, delay_s=DELAY) as workers:
        counter = threading.Thread(target=count)
        counter.start()
        submit(workers, make_call(LONG, torch.float32)).wait()
        done.set()
        counter.join()
    assert ticks >= 5


def test_a_job_keeps_its_tensors_and_a_dropped_one_ends_first():
    call = make_call(LONG, torch.float32)
    alive = weakref.ref(call.k)
    want = exact(call)
    with cpu.Workers(1, delay_s=DELAY) as workers:
        start = time.perf_counter()
        kept, dropped = submit(workers, call), submit(workers, call)
        del call
        assert alive() is not None
        assert_close(kept.wait(), want)
        del kept, dropped
        assert alive() is None
        assert time.perf_counter() - start >= DELAY


def test_closing_finishes_jobs_in_flight_and_refuses_more():
    call = make_call(LONG, torch.float32)
    workers = cpu.Workers(delay_s=0.01)
    jobs = [submit(workers, call) for _ in range(10)]
    workers.close()
    workers.close()
    want = exact(call)
    for job in jobs:
        assert_close(job.wait(), want)
        assert job.waited_s < 0.005, "all were done when close returned"
    with pytest.raises(KernelError, match="closed"):
        submit(workers, call)


def test_workers_dropped_with_jobs_in_flight():
    call = make_call(LONG, torch.float32)
    jobs = [submit(cpu.Workers(delay_s=0.01), call) for _ in range(5)]
    for job in jobs:
        assert_close(job.wait(), exact(call))


def test_an_empty_job_is_done_at_once():
    with cpu.Workers(1, delay_s=DELAY) as workers:
        job = submit(workers, make_call(Case("nothing", lengths=(0,)), torch.float32))
        job.wait()
        assert job.waited_s < DELAY / 4
        assert job.ran_s == 0


def test_idle_workers_use_no_cpu():
    with cpu.Workers() as workers:
        submit(workers, make_call(LONG, torch.float32)).wait()
        start = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - start < 0.1


@pytest.mark.parametrize("threads", [None, 1])
def test_reading_sums_every_word(threads):
    torch.manual_seed(0)
    with cpu.Workers(threads) as workers:
        for words in (0, 32, 131_072 + 32, 500_000 // 32 * 32):
            data = torch.randint(-(2**63), 2**63 - 1, (words,))
            assert workers.read(data) == int(data.sum()) % 2**64
        with pytest.raises(KernelError, match="264 bytes are not a multiple of 256"):
            workers.read(torch.zeros(33, dtype=torch.int64))
        with pytest.raises(KernelError, match="must be contiguous"):
            workers.read(torch.zeros(64, 64).T)


def test_tasks_are_recorded_while_they_are_to_be():
    call = make_call(LONG, torch.float32)
    with cpu.Workers(1) as workers:
        submit(workers, call).wait()
        assert workers.take_tasks() == []
        workers.record_tasks(on=True)
        before, jobs = time.perf_counter(), [submit(workers, call) for _ in range(3)]
        for job in jobs:
            job.wait()
        times, after = workers.take_tasks(), time.perf_counter()
        workers.record_tasks(on=False)
        submit(workers, call).wait()
        assert workers.take_tasks() == []
    numbers, threads, _, _ = map(set, zip(*times, strict=True))
    assert numbers == {job.number for job in jobs}
    assert threads <= {0, cpu.OTHER_THREAD}
    assert all(before <= start_s <= end_s <= after for _, _, start_s, end_s in times)
    for job in jobs:
        own = [(start_s, end_s) for number, _, start_s, end_s in times if number == job.number]
        assert min(start_s for start_s, _ in own) == pytest.approx(job.started_s, abs=1e-4)
        assert max(end_s for _, end_s in own) == pytest.approx(job.started_s + job.ran_s, abs=1e-4)


def test_a_job_whose_caller_helps_takes_one_worker_fewer():
    """Else three threads share two cores, and the one that has to wait is waited for."""
    call = make_call(Case("longer", H=4, S=400, N=400), torch.float32)
    with cpu.Workers(2) as workers:
        workers.record_tasks(on=True)
        for _ in range(200):
            workers.partial(call.q, call.k, call.v, call.blocks, call.scale)
        helped = {(job, thread) for job, thread, _, _ in workers.take_tasks() if thread != cpu.OTHER_THREAD}
        jobs = [submit(workers, call) for _ in range(200)]
        for job in jobs:
            job.wait()
        alone = {(job, thread) for job, thread, _, _ in workers.take_tasks() if thread != cpu.OTHER_THREAD}
    assert helped
    assert len({job for job, _ in helped}) == len(helped)
    assert len({job for job, _ in alone}) < len(alone)
