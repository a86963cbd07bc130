"""Several users of one LLM: answers are whole and equal to those of each alone, and who leaves takes nothing along."""

import gc
import os
import signal
import threading

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


def assert_free(llm: LLM) -> None:
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
    assert len(llm.engine.scheduler.running) + len(llm.engine.scheduler.waiting) <= 1
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
    llm = far_llm(str(tiny_models["llama"]), ScoutConfig(budget=None, block_size=8), 30, 3)
    expected = alone(llm, [3, 4])
    streams = [llm.stream(PROMPTS[number], params(number)) for number in (3, 4)]
    firsts = [next(stream) for stream in streams]
    other = llm.stream(PROMPTS[5], params(5))
    next(other)
    decode = llm.engine.runner.decode

    def broken(*args, **options):
        decode(*args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.runner, "decode", broken)
        with pytest.raises(KeyboardInterrupt):
            for _ in other:
                pass
    assert [whole([first, *stream]) for first, stream in zip(firsts, streams, strict=True)] == expected
    assert_free(llm)


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
        assert_free(llm)


def test_an_llm_that_was_closed_says_so(tiny_models):
    with LLM(str(tiny_models["llama"]), scout=SCOUT) as llm:
        stream = llm.stream(PROMPT, params(3))
        next(stream)
        waiting = llm.stream(PROMPT, params(3))
    for ask in (lambda: llm.generate(PROMPT), lambda: llm.stream(PROMPT), lambda: next(stream), lambda: next(waiting)):
        with pytest.raises(ScoutError, match="the LLM was closed: make a new one"):
            ask()
    llm.close()
    assert llm.stats().new_tokens > 0


def test_an_llm_cannot_be_asked_by_what_it_calls(tiny_models):
    with LLM(str(tiny_models["llama"]), scout=SCOUT) as llm:
        with pytest.raises(ScoutError, match="on_prompt asks the LLM"):
            llm.generate(PROMPT, params(1), on_prompt=lambda done, total: llm.generate(PROMPT) and None)
        assert len(llm.generate(PROMPT, params(0))[0].token_ids) == 6


def test_a_forked_child_is_refused(tiny_models, monkeypatch):
    with LLM(str(tiny_models["llama"]), scout=SCOUT) as llm:
        monkeypatch.setattr(os, "getpid", lambda: 7)
        for ask in (llm.generate, llm.stream):
            with pytest.raises(ScoutError, match=r"made in process \d+, and this one was forked from it: make a new"):
                ask(PROMPT)


def test_a_stream_that_the_garbage_collector_drops_waits_for_nobody(llm, expected):
    """Wherever the collector runs: here in the middle of asking whether there is news."""
    dropped, kept = llm.stream(PROMPTS[3], params(3)), llm.stream(PROMPTS[4], params(4))
    first = [next(dropped), next(kept)][1]
    held, turns = [dropped], llm._turns
    del dropped
    with turns._changed:
        held.clear()
    assert same(llm, [whole([first, *kept])], expected[4:5])


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
