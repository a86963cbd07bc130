"""The decode benchmark: processes, turns, what is compared, and the engines that answer alike."""

import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from scoutattention import ScoutConfig
from scoutattention.bench.decode import measure as decode
from scoutattention.bench.decode import process as decode_process
from scoutattention.bench.decode.job import DecodeJob, Far, Setup, Timed
from scoutattention.bench.decode.measure import Result, Workload, measure, missing
from scoutattention.bench.decode.process import EngineProcess, Serving
from scoutattention.bench.decode.scout import OurDecoding, SlotsDecoding
from scoutattention.bench.decode.transformers import (
    ScoutTransformersDecoding,
    StaticTransformersDecoding,
    TransformersDecoding,
)
from scoutattention.bench.plot import decode_png
from scoutattention.engine import engine as engine_file
from scoutattention.errors import CapacityError, ConfigError

PROMPTS = tuple(tuple((7 * i * i + 3 * i + row) % 97 for i in range(120)) for row in range(2))
JOB = DecodeJob(Path("nowhere"), None, "float32", PROMPTS, 160, ScoutConfig(budget=96), 2.0, 1)
SETUP = Setup("float32", "float32", "none")
FARS = (Far(0.002, 0.0, 50, 10), Far(0.001, 0.001, 50, 20), Far(0.009, 0.002, 100, 10))
WORKLOAD = Workload((120,), (2,), ("scout", "transformers"), rounds=2, steps=3, traced=2)


@dataclass
class FakeEngine:
    """Stands in for a process; notes what every engine was asked, in order."""

    engine: str
    job: DecodeJob
    asked: list = field(default_factory=list)

    def ask(self, work, *arguments):
        FakeEngine.log.append((self.engine, work.__name__))
        new = [[5] * 10 for _ in self.job.prompts]
        if self.engine == "scout":
            new[1][5] = 6
        given = {
            "read": 2.0,
            "steps": [Timed(0.25, far) for far in FARS] if self.engine == "scout" else [Timed(0.25, None)] * 3,
            "answers": new,
            "memory": (3 << 20, 4 << 20),
            "traced": None,
            "setup": SETUP,
        }
        return given[work.__name__]

    def close(self):
        FakeEngine.log.append((self.engine, "close"))


@pytest.fixture
def fake(monkeypatch):
    FakeEngine.log = []
    monkeypatch.setattr(decode, "EngineProcess", FakeEngine)


@pytest.fixture
def job(tiny_models):
    return replace(JOB, model=tiny_models["llama"])


def test_cases_above_the_limit_are_left_out_and_named():
    workload = Workload((1024, 7936), (4, 1), largest=8000)
    assert workload.cases() == [(1024, 1), (1024, 4), (7936, 1)]
    assert workload.left_out() == [(7936, 4)]


@pytest.mark.usefixtures("fake")
def test_a_case_is_measured_in_turns_and_compared():
    scout, transformers = measure(WORKLOAD, JOB, lambda what: None).results
    assert scout == Result("scout", *SETUP, 120, 2, 96, 250.0, 8.0, 120.0, 3.0, 4.0, 0.75, 2.0, 1.0, 0.2)
    nothing_far = {"hidden_ms": None, "unhidden_ms": None, "share": None}
    assert transformers == scout._replace(engine="transformers", budget=None, same_tokens=1.0, **nothing_far)
    turns = [engine for engine, work in FakeEngine.log if work == "steps"]
    assert turns == ["scout", "transformers", "transformers", "scout", "scout", "transformers"]
    assert [work for _, work in FakeEngine.log[:4]] == ["setup", "read"] * 2
    assert {engine for engine, work in FakeEngine.log if work == "close"} == {"scout", "transformers"}


def test_the_first_round_is_not_counted(fake, monkeypatch):
    """Its steps take ten seconds, those of the two that count a quarter."""
    answer = FakeEngine.ask

    def ask(self, work, *arguments):
        first = FakeEngine.log.count((self.engine, "steps")) == 0
        given = answer(self, work, *arguments)
        return [Timed(10.0, None)] * 300 if work is Serving.steps and first else given

    monkeypatch.setattr(FakeEngine, "ask", ask)
    assert [result.ms_per_step for result in measure(WORKLOAD, JOB, lambda told: None).results] == [250.0, 250.0]


def test_engines_that_cannot_run_say_why(monkeypatch):
    assert missing("scout", JOB) is None
    monkeypatch.setattr(decode, "find_spec", lambda name: None)
    assert missing("llama.cpp", JOB) == "llama.cpp is not installed: pip install llama-cpp-python"
    monkeypatch.setattr(decode, "find_spec", lambda name: name)
    assert missing("llama.cpp-converted", JOB) == "llama.cpp-converted needs a model that comes as a .gguf file"
    assert missing("llama.cpp", JOB) == "llama.cpp needs a model that comes as a .gguf file"
    assert missing("llama.cpp", replace(JOB, gguf=Path("m.gguf"))) is None


def test_a_process_answers_what_the_engine_would(job):
    process = EngineProcess("dense", replace(job, scout=ScoutConfig(budget=None)))
    assert process.ask(Serving.read) > 0
    assert len(process.ask(Serving.steps, 4)) == 4
    there, most = process.ask(Serving.memory)
    assert 64 << 20 < there <= most < 16 << 30, "bytes, of a process with PyTorch and a tiny model"
    answers = process.ask(Serving.answers)
    process.close()
    here = OurDecoding(replace(job, scout=ScoutConfig(budget=None)))
    here.read()
    for _ in range(4):
        here.step()
    assert here.answers() == answers


def test_reading_ends_when_every_prompt_was_read(job, monkeypatch):
    monkeypatch.setattr(engine_file, "READING_S", 0.0)
    decoding = OurDecoding(job)
    decoding.read()
    assert [len(answer) for answer in decoding.answers()] == [1, 1]
    traced = decoding.traced_steps(2)
    assert len(traced.timeline.steps()) == len(traced.seconds) == len(traced.plain_s) == 2
    assert [len(answer) for answer in decoding.answers()] == [5, 5]


def test_transformers_and_our_engine_answer_alike(job):
    before = torch.is_grad_enabled()
    job = replace(job, scout=ScoutConfig(budget=None))
    kinds = OurDecoding, TransformersDecoding, StaticTransformersDecoding, ScoutTransformersDecoding
    ours, *theirs = (kind(job) for kind in kinds)
    for engine in (ours, *theirs):
        engine.read()
        for _ in range(20):
            engine.step()
    torch.set_grad_enabled(before)
    assert [ours.answers()] * 3 == [engine.answers() for engine in theirs]
    assert theirs[0].traced_steps(1) is None
    assert ours.setup() == Setup("float32", "float32", "none")
    assert theirs[1].setup() == Setup("float32", "float32")


def test_only_the_engine_that_is_named_after_them_has_slots(job):
    longer = replace(job, max_len=4 * 96)
    engines = [make(longer)._llm.engine for make in (OurDecoding, SlotsDecoding)]
    assert [engine.store.slots is None for engine in engines] == [True, False]


@pytest.mark.parametrize(("slots", "held"), [(2.0, 4), (0.5, 1), (0.0, 0)])
def test_slots_are_a_multiple_of_the_budget(job, slots, held):
    """A budget of 96 tokens is two closed blocks and the open one."""
    engine = SlotsDecoding(replace(job, max_len=4 * 96, slots=slots))._llm.engine
    assert engine.plan.quota(2, 4 * 96) == held


def test_a_step_tells_what_the_cpu_did(job):
    """Four closed blocks, one slot: all but what it holds is far, until a limit leaves blocks out."""
    few = replace(job, slots=0.5, scout=ScoutConfig(budget=96, max_cpu_share=None))
    decoding, plain = SlotsDecoding(few), OurDecoding(job)
    for engine in (decoding, plain):
        engine.read()
    far = decoding.step()
    assert 0 < far.far_blocks < far.chosen_blocks
    assert far.hidden_s + far.unhidden_s > 0
    assert plain.step() is None


def test_errors_of_the_engine_cross_the_pipe(job):
    with pytest.raises(ConfigError, match="max_model_len=100000 is above"):
        EngineProcess("scout", replace(job, max_len=100_000))


def test_an_engine_that_dies_is_reported(job):
    process = EngineProcess("dense", job)
    process._process.kill()
    with pytest.raises(CapacityError, match=r"process of dense ended with exit code -9"):
        process.ask(Serving.read)


def test_only_an_engines_own_process_loads_what_it_needs():
    loaded = "[m for m in ('torch', 'transformers') if m in sys.modules]"
    code = f"import sys, scoutattention.bench.decode.measure; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"


def test_every_engine_is_named():
    assert set(decode.REFERENCES) | {"scout", "scout-slots", "transformers-scout"} == set(decode_process.ENGINES)


def test_the_plot_is_a_picture(tmp_path):
    result = Result("dense", *SETUP, 1024, 1, None, 10.0, 100.0, 300.0, 500.0, 600.0, 1.0)
    (tmp_path / "a.png").write_bytes(
        decode_png([result, result._replace(context=8192), result._replace(batch=4)], "m, budget 96")
    )
    assert imread(tmp_path / "a.png").shape[2] == 4
