"""A step that is captured once and replayed does what a step that is queued anew would."""

import gc
import weakref
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from scoutattention import LLM, SamplingParams, ScoutConfig
from scoutattention.engine import engine
from scoutattention.engine.device import make_ops
from scoutattention.engine.scheduler import Sequence
from scoutattention.runtime.graphs import MOST, SIZES, Captured, CudaGraphs, Graphs, padded
from scoutattention.runtime.ranks import Alone

from ..engine.tape import Tapes
from ..engine.test_generate import PROMPT, far_llm

REQUESTS = [(PROMPT, 30), (PROMPT[:61], 10), (PROMPT[:20], 12)]
"""Prompts and new tokens: the third comes when the second has ended, and is within the budget at first."""
FAR = ScoutConfig().changed(
    budget=40, block_size=8, recall_interval=2, true_query_layers=(), guard=0.001, max_cpu_share=0.3
)


@pytest.fixture
def tapes(monkeypatch) -> Tapes:
    """What records steps of engines of plain kernels: everything of a step is PyTorch then, and on the tape."""
    made = Tapes()

    def deferred(*args):
        ops = make_ops(*args)
        ops.deferred, ops.take_call = True, made.waiting(ops.take_call)
        return made.with_kernels(ops)

    monkeypatch.setattr(engine, "make_ops", deferred)
    return made


def answers(llm: LLM, recorder: Tapes | None) -> list[list[int]]:
    runner = llm.engine.runner
    if recorder is not None:
        runner._graphs = Graphs(recorder)
    sequences = []
    for number, (prompt, count) in enumerate(REQUESTS):
        params = SamplingParams(max_tokens=count, ignore_eos=True)
        sequences.append(Sequence(number, prompt, params, len(prompt) + count, llm.tokenizer))
        llm.engine.add(sequences[-1])
    while llm.engine.busy:
        llm.engine.step()
    return [sequence.output_ids for sequence in sequences]


METHODS = pytest.mark.parametrize(
    "options",
    [
        {},
        {"lookahead": 2, "digest": "minmax"},
        {"far_query": "true", "guard": None},
        {"on_miss": "drop"},
        {"guard": None},
        {"on_miss": "fetch"},
        {"on_miss": "fetch", "lookahead": 0},
    ],
    ids=str,
)
"""Settings of the method that queue different work in a step."""


@METHODS
def test_replayed_steps_give_the_tokens_and_the_counts_of_others(tiny_models, tapes, options):
    scout = FAR.changed(**options)
    made = []
    for recorder in (None, tapes):
        llm = far_llm(str(tiny_models["qwen3"]), scout, 5, 2, kernels="plain")
        tokens, steps = answers(llm, recorder), llm.stats().steps
        made.append((tokens, steps.chosen_blocks, steps.far_blocks, steps.guarded_heads, steps.recalls))
    assert made[0] == made[1]
    assert made[0][2] > 0
    assert tapes.played > 16
    assert tapes.recorded <= 4, "a graph is for more than a block's steps"


@pytest.mark.parametrize("options", [{}, {"guard": None}, {"on_miss": "fetch"}, {"on_miss": "drop"}], ids=str)
def test_a_changing_batch_is_padded_to_a_few_sizes(tiny_models, tapes, options):
    """Sequences join and leave; each answers as alone, and new ones get rows that padded before."""
    scout, asked = FAR.changed(budget=24, **options), [(PROMPT[: 75 - 4 * n], 10 + 3 * n) for n in range(9)]
    llm = LLM(str(tiny_models["qwen3"]), scout=scout, device_memory="slots", max_num_seqs=8, kernels="plain")
    alone, sizes = [], []
    for number in range(len(asked)):
        alone += run_requests(llm, [(number, *asked[number])])
    steps = llm.stats().steps
    llm.engine.runner._graphs = Graphs(tapes)
    decode = llm.engine.runner.attention.prepare
    llm.engine.runner.attention.prepare = lambda rows, real: sizes.append(len(rows)) or decode(rows, real)
    assert run_requests(llm, [(number, *each) for number, each in enumerate(asked)], at_once=3) == alone
    assert set(sizes) <= {1, 2, 4, 7, 8}
    assert 4 in sizes
    assert 7 in sizes
    more = llm.stats().steps
    for name in ("chosen_blocks", "far_blocks", "recalls", "recalled_bytes"):
        assert getattr(more, name) == 2 * getattr(steps, name)


def run_requests(llm, asked, at_once=1):
    """The tokens of some requests, of which so many come in each step."""
    sequences = []
    for number, prompt, count in asked:
        params = SamplingParams(max_tokens=count, ignore_eos=True)
        sequences.append(Sequence(number, prompt, params, len(prompt) + count, llm.tokenizer))
    coming = list(sequences)
    while coming or llm.engine.busy:
        for one in coming[:at_once]:
            llm.engine.add(one)
        coming = coming[at_once:]
        llm.engine.step()
        llm.engine.step()
    return [sequence.output_ids for sequence in sequences]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9, 13, 17, 33, 100, 257, 1000])
def test_sizes_are_never_below_the_batch_nor_above_what_there_is_room_for(size):
    for most in (0, size - 1, size, size + 1, 2000):
        assert size <= padded(size, most) <= max(size, most)
    assert padded(size, 2000) in (*SIZES, size)
    assert padded(size, 2000) < 2 * size or size == 1


@pytest.mark.parametrize("budget", [None, 40])
def test_replayed_steps_where_everything_is_resident(tiny_models, tapes, budget):
    scout, made = ScoutConfig(budget=budget, block_size=8), []
    for recorder in (None, tapes):
        llm = LLM(str(tiny_models["llama"]), scout=scout, max_num_seqs=2, kernels="plain")
        made.append((answers(llm, recorder), llm.stats().steps.chosen_blocks))
    assert made[0] == made[1]
    assert tapes.played > 8


def test_a_replayed_step_is_waited_for_before_it_ends(tiny_models, tapes, monkeypatch):
    class Waiting(Alone):
        def settle(self):
            order.append("settle")

    order = []
    llm = far_llm(str(tiny_models["qwen3"]), FAR, 5, 2, kernels="plain")
    runner = llm.engine.runner
    end = runner.attention.end
    monkeypatch.setattr(runner.attention, "end", lambda *args: order.append("end") or end(*args))
    runner.decoder.ranks = Waiting()
    answers(llm, tapes)
    assert order == ["settle", "end"] * (len(order) // 2)


def test_a_step_is_prepared_while_the_device_works_on_the_one_before(tiny_models, tapes, monkeypatch):
    """Only where sequences come or go is a step prepared between two."""
    order = []

    def noted(owner, name):
        run = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: order.append(name) or run(*args))

    llm = far_llm(str(tiny_models["qwen3"]), FAR, 5, 2, kernels="plain")
    attention = llm.engine.runner.attention
    for owner, name in (
        (attention, "prepare"),
        (attention, "start"),
        (attention, "count"),
        (attention.exchange, "read"),
    ):
        noted(owner, name)
    answers(llm, tapes)
    told = " ".join(order)
    steps = told.count("read")
    assert told.count("start count prepare read") + told.count("start count read") == steps
    between = told.count("read prepare start")
    assert 0 < between < 5, "the second sequence ends, and the third one comes"
    assert told.count("prepare read start") == steps - between - 1


def test_no_step_is_prepared_beyond_a_sequences_memory(tiny_models, tapes):
    """72 tokens fill 9 blocks, and there is no tenth."""
    scout = ScoutConfig(budget=40, block_size=8)
    llm = LLM(str(tiny_models["llama"]), scout=scout, device_memory="all", max_num_seqs=1, kernels="plain")
    runner, store = llm.engine.runner, llm.engine.store
    runner._graphs = Graphs(tapes)
    store.admit(0, 9, 0)
    runner.prefill(0, PROMPT[:61])
    for position in range(61, 72):
        runner.decode([1], [position])
    assert store.closed[0] == 9
    assert tapes.played > 4


def test_a_closed_engine_has_no_graphs(tiny_models, tapes):
    llm = far_llm(str(tiny_models["qwen3"]), FAR, 5, 2, kernels="plain")
    answers(llm, tapes)
    held = weakref.ref(llm.engine.runner._graphs)
    llm.close()
    assert held() is None


def test_only_so_many_graphs_are_kept():
    made = []

    class Recorder:
        def capture(self, step):
            made.append(step())
            return Captured(lambda: None, made[-1])

    graphs, step = Graphs(Recorder()), partial(torch.ones, 2)
    for key in range(MOST + 3):
        for _ in range(3):
            assert graphs.run(key, step).tolist() == [1, 1]
    assert len(made) == MOST + 3
    graphs.run(MOST + 2, step)
    assert len(made) == MOST + 3
    graphs.run(0, step)
    assert len(made) == MOST + 4, "the oldest was let go"


def test_no_garbage_is_collected_while_a_step_is_captured(monkeypatch):
    @contextmanager
    def graph(made, pool):
        yield

    class Graph:
        def replay(self):
            pass

    for name, fake in {"graph": graph, "CUDAGraph": Graph, "graph_pool_handle": int, "synchronize": int}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    assert gc.isenabled()
    assert CudaGraphs().capture(gc.isenabled).outputs is False
    assert gc.isenabled()
