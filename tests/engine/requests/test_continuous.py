"""Requests join and leave between steps, prompts are read in pieces, and no answer depends on who else is there."""

import random
import time

import pytest

from scoutattention import LLM, SamplingParams, ScoutConfig
from scoutattention.engine import runner
from scoutattention.engine.scheduler import NOBODY, Sequence

from ..test_generate import PROMPT, far_llm

SCOUT = ScoutConfig(budget=40, block_size=8)
PROMPTS = [PROMPT, PROMPT[:30], PROMPT[10:60], PROMPT[5:70], PROMPT[:3], PROMPT[20:50]]
STREAMED = NOBODY._replace(streamed=True)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(runner, "PIECE_ON_CPU", 8)


def request(llm: LLM, number: int, tokens: int = 12, *, streamed: bool = False) -> Sequence:
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    ids = PROMPTS[number]
    return Sequence(number, ids, params, len(ids) + tokens, llm.tokenizer, reader=STREAMED if streamed else NOBODY)


def run(llm: LLM) -> None:
    while llm.engine.busy:
        llm.engine.step()
    store = llm.engine.store
    assert store.pages.available() == store.pages.pool.capacity
    assert store.slots is None or store.slots.pool.available == store.slots.pool.capacity


@pytest.fixture(params=[{}, {"device_memory": "slots"}], ids=["one memory", "slots"])
def llm(request, tiny_models):
    with LLM(str(tiny_models["llama"]), scout=SCOUT, max_num_seqs=4, **request.param) as made:
        yield made


@pytest.mark.parametrize("seed", range(6))
def test_an_answer_is_the_same_whoever_joins_and_leaves_meanwhile(llm, seed):
    alone = []
    for number in range(len(PROMPTS)):
        one = request(llm, number, 5 + 4 * number)
        llm.engine.add(one)
        run(llm)
        alone.append(one.output_ids)
    dice = random.Random(seed)
    joining = [
        request(llm, number, 5 + 4 * number, streamed=dice.random() < 0.5)
        for number in dice.sample(range(len(PROMPTS)), len(PROMPTS))
    ]
    leaving = [request(llm, dice.randrange(len(PROMPTS)), 30, streamed=dice.random() < 0.5) for _ in range(3)]
    coming, there = dice.sample([*joining, *leaving], len(joining) + len(leaving)), []
    while coming or there:
        if coming and dice.random() < 0.4:
            there.append(coming.pop())
            llm.engine.add(there[-1])
        if there and dice.random() < 0.1:
            llm.engine.cancel(dice.choice([one for one in there if one in leaving] or [None]) or leaving[0])
        llm.engine._step_s = dice.random() * 1e-4  # how many pieces of a prompt are read
        llm.engine.step()
        there = [one for one in there if one in llm.engine.scheduler.sequences]
    run(llm)
    for one in joining:
        assert one.output_ids == alone[one.id]


def test_who_streams_gets_a_token_for_each_turn_of_anothers_prompt(llm, monkeypatch):
    read_for = llm.engine._read
    streamed, other = request(llm, 2, 160, streamed=True), request(llm, 0)
    llm.engine.add(streamed)
    while not streamed.output_ids:
        llm.engine.step()
    llm.engine.add(other)
    monkeypatch.setattr(llm.engine, "_read", lambda seconds: read_for(0.0))
    said, read = [len(streamed.output_ids)], [0]
    while not other.output_ids:
        news = llm.engine.step()
        assert news == [streamed, other]
        said.append(len(streamed.output_ids))
        read.append(other.ready.read)
    # A piece is projected, attended to, and updated; behind all pieces a layer is written, fitted and digested, and
    # with slots these are filled and scouts are tried.
    turns = 3 * -(-len(PROMPT) // 8) + (3 if llm.engine.store.resident else 5)
    assert len(said) == 1 + llm.engine.store.num_layers * turns + 1
    assert said == list(range(said[0], said[0] + len(said)))
    assert read == sorted(read)
    assert read[-1] == len(PROMPT)
    llm.engine.cancel(streamed)
    run(llm)


def test_a_slow_step_does_not_make_the_next_turn_of_reading_long(llm, monkeypatch):
    read_for, decode, turns = llm.engine._read, llm.engine.runner.decode, []
    streamed = request(llm, 2, 160, streamed=True)
    llm.engine.add(streamed)
    while len(streamed.output_ids) < 20:
        llm.engine.step()

    def slowly(*args, **more):
        time.sleep(0.5)
        return decode(*args, **more)

    monkeypatch.setattr(llm.engine, "_read", lambda seconds: turns.append(seconds) or read_for(seconds))
    monkeypatch.setattr(llm.engine.runner, "decode", slowly)
    llm.engine.step()
    assert 0 < turns[-1] < 0.5
    llm.engine.cancel(streamed)
    run(llm)


def test_prompts_come_first_where_nobody_streams(llm):
    first, second = request(llm, 2), request(llm, 0)
    llm.engine.add(first)
    while not first.output_ids:
        llm.engine.step()
    llm.engine.add(second)
    while not second.output_ids:
        llm.engine.step()
    assert len(first.output_ids) == 1
    run(llm)


def test_an_answer_goes_on_while_prompts_keep_coming(llm, monkeypatch):
    """A prompt of which one token is asked for comes whenever none waits, and nobody streams."""
    monkeypatch.setattr("scoutattention.engine.engine.READING_S", 0.0)
    monkeypatch.setattr("scoutattention.engine.engine.MOST_READING", 1)
    first = request(llm, 0)
    llm.engine.add(first)
    others = []
    while not first.ready.finish_reason:
        if not llm.engine.scheduler.waiting:
            others.append(request(llm, 1, 1))
            llm.engine.add(others[-1])
        llm.engine.step()
        assert len(others) < 1000
    for other in others:
        llm.engine.cancel(other)
    run(llm)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_prompt_that_is_cancelled_while_it_is_read_frees_its_memory_at_once(llm, steps, monkeypatch):
    monkeypatch.setattr("scoutattention.engine.engine.READING_S", 0.0)
    one, after = request(llm, 0), request(llm, 1)
    llm.engine.add(one)
    for _ in range(steps):
        llm.engine.step()
    assert llm.engine.scheduler.reading is one
    llm.engine.cancel(one)
    run(llm)
    llm.engine.add(after)
    run(llm)
    assert len(after.output_ids) == 12


def test_slots_are_shared_with_who_comes_later(tiny_models):
    """All blocks are chosen, so the answers do not depend on which are in slots."""
    scout = ScoutConfig(budget=None, block_size=8)
    with LLM(str(tiny_models["llama"]), scout=scout) as whole:
        expected = [whole.generate(PROMPTS[n], SamplingParams(max_tokens=60, ignore_eos=True))[0] for n in (0, 3, 5)]
    llm = far_llm(str(tiny_models["llama"]), scout, 4, 3)
    slots, requests = llm.engine.store.slots, [request(llm, number, 60, streamed=True) for number in (0, 3, 5)]
    quotas = []
    for one in requests:
        llm.engine.add(one)
        while len(one.output_ids) < 5:
            llm.engine.step()
        quotas.append(slots.quota[: len(quotas) + 1])
    run(llm)
    assert quotas == [[11], [5, 5], [3, 3, 3]]
    assert [one.output_ids for one in requests] == [out.token_ids for out in expected]
    llm.close()
