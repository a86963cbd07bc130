"""Several users of one LLM: answers are whole and equal to those of each alone, and who leaves takes nothing along."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from scoutattention import LLM, SamplingParams, ScoutConfig, ScoutError

from ..test_generate import PROMPT, far_llm

SCOUT = ScoutConfig(budget=40, block_size=8)
PROMPTS = [PROMPT, PROMPT[:30], PROMPT[10:60], PROMPT[5:70], PROMPT[:3], PROMPT[20:50]]
MEMORIES = {"one": {}, "slots": {"device_memory": "slots"}, "few slots": {"device_memory": 15 * 6144}}


def params(number: int) -> SamplingParams:
    return SamplingParams(max_tokens=6 + 2 * number, ignore_eos=True, temperature=float(number % 2), seed=number)


@pytest.fixture(scope="module", params=MEMORIES)
def shared(request, tiny_models):
    """An LLM, and each answer alone."""
    with LLM(str(tiny_models["llama"]), scout=SCOUT, max_num_seqs=3, **MEMORIES[request.param]) as made:
        yield made, alone(made, range(len(PROMPTS)))


@pytest.fixture
def llm(shared):
    yield shared[0]
    assert_free(shared[0])


@pytest.fixture
def expected(shared):
    return shared[1]


def same(llm: LLM, found: list, expected: list) -> bool:
    """Whether answers of a batch are equal to those alone; sequences that share slots may say something else."""
    if isinstance(llm.engine_config.device_memory, int):
        return [len(ids) for _, ids in found] == [len(ids) for _, ids in expected]
    return found == expected


def settled(llm: LLM) -> None:
    """Return when the engine has nothing more to do."""
    end = time.monotonic() + 60
    while llm._thread._awake:
        assert time.monotonic() < end
        time.sleep(0.001)


def assert_free(llm: LLM) -> None:
    settled(llm)
    store = llm.engine.store
    assert not llm.engine.busy
    assert store.pages.available() == store.pages.pool.capacity
    if store.slots is not None:
        assert store.slots.pool.available == store.slots.pool.capacity


def alone(llm: LLM, numbers) -> list[tuple[str, list[int]]]:
    outs = [llm.generate(PROMPTS[number], params(number))[0] for number in numbers]
    return [(out.text, out.token_ids) for out in outs]


def whole(chunks) -> tuple[str, list[int]]:
    chunks = list(chunks)
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["length"]
    return "".join(chunk.text for chunk in chunks), [token for chunk in chunks for token in chunk.token_ids]


def test_streams_that_are_read_in_turn_are_whole(llm, expected):
    streams = [llm.stream(prompt, params(number)) for number, prompt in enumerate(PROMPTS)]
    chunks: list[list] = [[] for _ in streams]
    going = list(range(len(streams)))
    while going:
        for number in tuple(going):
            chunk = next(streams[number], None)
            if chunk is None:
                going.remove(number)
            else:
                chunks[number].append(chunk)
    assert same(llm, [whole(each) for each in chunks], expected)


def test_generate_while_a_stream_is_open(llm, expected):
    stream = llm.stream(PROMPTS[5], params(5))
    first = next(stream)
    outs = llm.generate(PROMPTS[:5], [params(number) for number in range(5)])
    assert same(llm, [(out.text, out.token_ids) for out in outs], expected[:5])
    assert same(llm, [whole([first, *stream])], expected[5:])


def test_threads_share_an_llm(llm, expected):
    found = {}

    def ask(number: int) -> None:
        if number % 2:
            found[number] = whole(llm.stream(PROMPTS[number], params(number)))
        else:
            (out,) = llm.generate(PROMPTS[number], params(number))
            found[number] = out.text, out.token_ids

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert same(llm, [found[number] for number in range(len(PROMPTS))], expected)


def test_a_stream_that_is_dropped_frees_what_it_held_and_touches_no_other(llm, expected):
    dropped, closed, kept = (llm.stream(PROMPTS[number], params(number)) for number in (3, 5, 4))
    first = [next(stream) for stream in (dropped, closed, kept)][2]
    del dropped
    closed.close()
    gc.collect()
    assert same(llm, [whole([first, *kept])], expected[4:5])


def test_who_is_interrupted_cancels_only_his_own(llm, expected):
    stream = llm.stream(PROMPTS[4], params(4))
    first = next(stream)

    def on_prompt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS[:2], params(3), on_prompt=on_prompt)
    assert same(llm, [whole([first, *stream])], expected[4:5])


def test_a_decode_step_that_is_broken_off_costs_nobody_a_token(tiny_models, monkeypatch):
    """What no request is to blame for, and no error that is known."""
    llm = far_llm(str(tiny_models["llama"]), ScoutConfig(budget=None, block_size=8), 30, 3)
    expected = alone(llm, [3, 4])
    settled(llm)
    requests = [request for number in (3, 4) for request in llm._requests(PROMPTS[number], params(number), False)]
    for request in requests:
        llm.engine.add(request)
    decode = llm.engine.runner.decode

    def broken(*args, **options):
        decode(*args, **options)
        raise KeyboardInterrupt

    for request in requests:
        while not request.output_ids:
            llm.engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.runner, "decode", broken)
        with pytest.raises(KeyboardInterrupt):
            llm.engine.step()
    while llm.engine.busy:
        llm.engine.step()
    assert [(request.text, request.output_ids) for request in requests] == expected
    assert_free(llm)


def test_what_breaks_the_engine_is_told_to_all_who_wait(llm, expected, monkeypatch):
    streams = [llm.stream(PROMPTS[number], params(number)) for number in (3, 4)]
    firsts = [next(stream) for stream in streams]
    assert firsts

    def broken(*args, **options):
        raise ValueError("nobody has thought of this")

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.runner, "decode", broken)
        for stream in streams:
            with pytest.raises(ValueError, match="nobody has thought"):
                for _ in stream:
                    pass
        settled(llm)
    assert same(llm, alone(llm, [4]), expected[4:5])


def test_ctrl_c_does_not_tear_a_step_apart(llm, expected, monkeypatch):
    """It breaks into the main thread, in the middle of a step that serves two streams."""
    stream, other = (llm.stream(PROMPTS[number], params(number)) for number in (4, 5))
    first = next(stream)
    decode, calls = llm.engine.runner.decode, []

    def signalled(*args, **options):
        calls.append(None)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return decode(*args, **options)

    monkeypatch.setattr(llm.engine.runner, "decode", signalled)
    with pytest.raises(KeyboardInterrupt):
        for _ in other:
            pass
    assert same(llm, [whole([first, *stream])], expected[4:5])


def test_a_cancelled_sequence_is_not_waited_for_in_the_middle_of_a_step(tiny_models):
    """As the garbage collector does, in whatever a thread is at."""
    with LLM(str(tiny_models["llama"]), scout=SCOUT) as llm:
        stream = [llm.stream(PROMPTS[5], params(5))]
        next(stream[0])
        outs = llm.generate(PROMPTS[0], params(0), on_prompt=lambda done, total: stream.clear())
        assert len(outs[0].token_ids) == 6
        assert stream == []
        assert_free(llm)


def test_an_llm_that_was_closed_says_so(tiny_models):
    long = SamplingParams(max_tokens=10_000, ignore_eos=True)
    with LLM(str(tiny_models["llama"]), scout=SCOUT, max_num_seqs=1) as llm:
        running, waiting = llm.stream(PROMPT, long), llm.stream(PROMPT, long)
        next(running)
    asks = (lambda: llm.generate(PROMPT), lambda: llm.stream(PROMPT), lambda: list(running), lambda: list(waiting))
    for ask in asks:
        with pytest.raises(ScoutError, match="the LLM was closed: make a new one"):
            ask()
    llm.close()
    assert llm.stats().new_tokens > 0


def test_an_llm_can_be_asked_by_what_it_calls(tiny_models):
    with LLM(str(tiny_models["llama"]), scout=SCOUT) as llm:
        inner = []
        outs = llm.generate(PROMPT, params(1), on_prompt=lambda done, total: inner.extend(llm.generate(PROMPT)))
        assert [out.finish_reason for out in (*outs, *inner)] == ["length"] * (1 + len(inner))
        assert inner


def test_a_forked_child_is_refused(tiny_models, monkeypatch):
    with LLM(str(tiny_models["llama"]), scout=SCOUT) as llm:
        monkeypatch.setattr(os, "getpid", lambda: 7)
        for ask in (llm.generate, llm.stream):
            with pytest.raises(ScoutError, match=r"made in process \d+, and this one was forked from it: make a new"):
                ask(PROMPT)


def test_a_stream_that_the_garbage_collector_drops_waits_for_nobody(llm, expected):
    """Wherever the collector runs: here while the engine's thread is being asked for."""
    dropped, kept = llm.stream(PROMPTS[3], params(3)), llm.stream(PROMPTS[4], params(4))
    first = [next(dropped), next(kept)][1]
    held = [dropped]
    del dropped
    with llm._thread._lock:
        held.clear()
    assert same(llm, [whole([first, *kept])], expected[4:5])


def test_answers_come_to_an_event_loop(llm, expected):
    async def ask(number: int) -> tuple[str, list[int]]:
        return whole([chunk async for chunk in llm.submit(PROMPTS[number], params(number))])

    async def all_of_them() -> list:
        return await asyncio.gather(*(ask(number) for number in range(len(PROMPTS))))

    assert same(llm, asyncio.run(all_of_them()), expected)


def test_a_task_that_is_cancelled_cancels_its_answer(llm, expected):
    async def ask(number: int, until: int) -> list:
        chunks = []
        answer = llm.submit(PROMPTS[number], params(number))
        async for chunk in answer:
            chunks.append(chunk)
            if len(chunks) == until:
                asyncio.current_task().cancel()
        return chunks

    async def both() -> list:
        return await asyncio.gather(ask(3, 2), ask(4, 99), return_exceptions=True)

    cancelled, kept = asyncio.run(both())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert same(llm, [whole(kept)], expected[4:5])


def test_who_waits_for_an_answer_that_another_cancels_gets_an_error(llm):
    answer = llm.submit(PROMPT, SamplingParams(max_tokens=100, ignore_eos=True))
    chunks = iter(answer)
    next(chunks)
    answer.cancel()
    answer.cancel()
    with pytest.raises(ScoutError, match="the answer was cancelled"):
        for _ in chunks:
            pass


def test_who_waits_for_an_answer_gets_what_generate_returns(llm):
    many = SamplingParams(max_tokens=5, ignore_eos=True, temperature=1.0, seed=3, n=2, logprobs=1)
    outs = llm.submit(PROMPT, many).wait()
    assert [(out.prompt_tokens, len(out.token_ids), out.finish_reason) for out in outs] == [
        (len(PROMPT), 5, "length")
    ] * 2
    assert all(len(out.logprobs) == 5 for out in outs)
    if not isinstance(llm.engine_config.device_memory, int):
        assert [out.text for out in outs] == [out.text for out in llm.generate(PROMPT, many)]
    answer = llm.submit(PROMPT, SamplingParams(max_tokens=100, ignore_eos=True))
    answer.cancel()
    with pytest.raises(ScoutError, match="the answer was cancelled"):
        answer.wait()


def test_the_answers_to_one_prompt_come_side_by_side(llm):
    many = SamplingParams(max_tokens=5, ignore_eos=True, temperature=1.0, seed=3, n=3)
    answer = llm.submit(PROMPT, many)
    said = {index: "" for index in range(3)}
    for chunk in answer:
        said[chunk.index] += chunk.text
    outs = llm.generate(PROMPT, many)
    assert answer.prompt_tokens == len(PROMPT)
    if not isinstance(llm.engine_config.device_memory, int):
        assert list(said.values()) == [out.text for out in outs]


def test_a_forked_child_drops_a_stream_and_closes_without_waiting(llm):
    stream = llm.stream(PROMPTS[3], params(3))
    next(stream)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        stream.close()
        llm.close()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    stream.close()


AFTER_MAIN = """
import sys, threading
from scoutattention import LLM, SamplingParams, ScoutError
llm = LLM(sys.argv[1])
begun = threading.Event()

def read():
    try:
        for chunk in llm.stream([1, 2, 3], SamplingParams(max_tokens=10**6, ignore_eos=True)):
            begun.set()
    except ScoutError as error:
        print(error)

threading.Thread(target=read).start()
begun.wait()
"""


def test_a_thread_that_outlives_the_main_thread_is_not_left_waiting(tiny_models):
    ran = subprocess.run(
        [sys.executable, "-c", AFTER_MAIN, str(tiny_models["llama"])],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout in ("the main thread has ended before this answer: let it wait for the answer\n", "")
