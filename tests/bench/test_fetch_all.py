"""Fetching everything: the logits of full attention, whenever the copies beside are done, and in replayed steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scoutattention.bench.gpu import decode as gpu_decode
from scoutattention.bench.gpu import fetch_all
from scoutattention.bench.gpu.cases import rivals
from scoutattention.bench.gpu.fetch_all import FetchAllAttention, copy_layer
from scoutattention.models.formats.dummy import dummy_decoder
from scoutattention.models.shapes.known import shape_config
from scoutattention.runtime.graphs import Graphs

from ..engine.test_two_memories import META
from ..engine.test_two_memories import make_engine as engines_on_meta
from ..runtime.test_graphs import tapes as tapes_of_steps
from .test_gpu_decode import BASE, CPU, ENGINE_CONFIG, make_bench

tapes, make_engine = tapes_of_steps, engines_on_meta
LENGTHS = (40, 35)
STEPS = 20  # both sequences close a block of 16 tokens


class LateStream:
    """Copies at the last moment: when it is joined.   told: what it was asked for."""

    def __init__(self, device: torch.device) -> None:
        self.told: list[str] = []
        self._put_off: list[Callable[[], object]] = []

    @contextmanager
    def after(self, *tensors: torch.Tensor) -> Iterator[None]:
        self.told.append("after")
        with _PuttingOff(self._put_off):
            yield

    def join(self) -> None:
        self.told.append("join")
        while self._put_off:
            self._put_off.pop(0)()


class _PuttingOff(TorchDispatchMode):
    def __init__(self, copies: list[Callable[[], object]]) -> None:
        super().__init__()
        self._copies = copies

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.copy_:
            self._copies.append(lambda: func(*args, **(kwargs or {})))
            return args[0]
        return func(*args, **(kwargs or {}))


def an_engine(name, layers, kernels="auto"):
    """An engine of a rival, without prompts."""
    decoder = dummy_decoder({**shape_config("tiny"), "num_hidden_layers": layers}, 256, CPU)
    bench = replace(make_bench((64,), engine_config=replace(ENGINE_CONFIG, kernels=kernels)), decoder=decoder)
    (rival,) = (rival for rival in rivals(BASE) if rival.name == name)
    return gpu_decode.make_engine(replace(bench, workload=replace(bench.workload, steps=STEPS)), rival, (64, 2), None)


def logits_of(engine):
    """Of steps after two prompts, float32 [STEPS, B, vocab]."""
    tokens = torch.randint(256, (2, 64), generator=torch.Generator().manual_seed(1)).tolist()
    for row, length in enumerate(LENGTHS):
        engine.store.admit(row, engine.plan.blocks(engine.plan.max_len), engine.plan.quota(2, engine.plan.max_len))
        engine.runner.prefill(row, tokens[row][:length])
    made = []
    for step in range(STEPS):
        places = [length + step for length in LENGTHS]
        made.append(engine.runner.decode([tokens[row][place] for row, place in enumerate(places)], places)[0].clone())
    engine.close()
    return torch.stack(made)


@pytest.mark.parametrize("stream", [None, LateStream])
@pytest.mark.parametrize("layers", [1, 3, 4])
def test_its_logits_are_those_of_full_attention(monkeypatch, layers, stream):
    if stream is not None:
        monkeypatch.setattr(fetch_all, "SideStream", stream)
    engine = an_engine("fetch-all", layers)
    assert isinstance(engine.runner.attention, FetchAllAttention)
    expected, made = logits_of(an_engine("full", layers)), logits_of(engine)
    assert engine.store.closed == [3, 3]
    assert float((made - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_what_a_step_queues_beside_it_ends_in_it(monkeypatch):
    """So that it can be captured: from `begin` to the last layer every wait is for a copy that was started there."""
    monkeypatch.setattr(fetch_all, "SideStream", LateStream)
    engine = an_engine("fetch-all", 4)
    logits_of(engine)
    told = engine.runner.attention._side.told
    assert told == ["after"] + (["join"] + ["after", "join"] * 3 + ["after"]) * STEPS


def test_a_step_that_fails_leaves_no_copy_beside_it(monkeypatch):
    """Else a capture would tell of that copy, and not of what failed."""

    def fail(*args):
        raise ValueError("a kernel")

    monkeypatch.setattr(fetch_all, "SideStream", LateStream)
    engine = an_engine("fetch-all", 4)
    attention = engine.runner.attention
    monkeypatch.setattr(attention._ops, "partial", fail)
    with pytest.raises(ValueError, match="a kernel"):
        logits_of(engine)
    engine.close()
    assert attention._side.told == ["after", "join", "after", "join"]


def test_replayed_steps_give_the_logits_of_others(tapes):
    made = []
    for recorder in (None, tapes):
        engine = an_engine("fetch-all", 3, "plain")
        if recorder is not None:
            engine.runner._graphs = Graphs(recorder)
        made.append(logits_of(engine))
    assert torch.equal(*made)
    assert tapes.recorded == 2, "of steps that close blocks, and of the others"
    assert tapes.played > STEPS - 6


def test_nothing_is_computed_from_both_memories(make_engine, monkeypatch):
    made = make_engine()
    store, runner = made.store, made.runner
    monkeypatch.setattr(store.exchange, "tell", lambda: None)  # a tensor without memory has nothing to tell
    runner.attention = FetchAllAttention(store, runner.attention.parts.ops, 0.25)
    for row in range(2):
        store.admit(row, made.plan.blocks(1024), made.plan.quota(2, 1024))
        store.finish_prompt(row, 600)
    step = runner.attention.prepare(range(2))
    runner.attention.start(step)
    assert runner._run(step).device == META
    assert runner.attention.end(step, []).recalled_bytes == 2 * store.pages.pool.k.nbytes


def test_a_layer_is_copied_in_pieces_that_were_pinned_at_once(monkeypatch):
    monkeypatch.setattr(fetch_all, "STEP", 64 * 4)
    pages = torch.randn(3, 5, 2, 4, 4)
    buffer, copies = torch.zeros(5, 2, 4, 4), []
    with _PuttingOff(copies):
        copy_layer(pages, 1, buffer)
    assert len(copies) == 3  # places 160 to 320, in steps of 64
    for copy in copies:
        copy()
    assert torch.equal(buffer, pages[1])
