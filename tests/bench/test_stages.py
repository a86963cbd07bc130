"""Stages: what is watched works as before, and every moment of a step is counted once."""

import pytest
import torch

from scoutattention import LLM, SamplingParams, ScoutConfig
from scoutattention.bench.decode.job import Span
from scoutattention.bench.decode.stages import exclusive, watch_engine
from scoutattention.models.loader import load
from scoutattention.types import BlockList

PROMPT = [(7 * i * i + 3 * i) % 97 for i in range(100)]
PARAMS = SamplingParams(max_tokens=12, ignore_eos=True)


def far_llm(path, **options):
    """An engine whose device holds 5 blocks of one sequence."""
    scout = ScoutConfig().changed(budget=48, block_size=8, true_query_layers=(), recall_interval=2, **options)
    block = load(path).decoder.shape.block_bytes(8)
    return LLM(path, scout=scout, device_memory=5 * block, max_num_seqs=1)


def test_time_inside_is_counted_once():
    spans = [
        Span("wait", 1.0, 1.0),
        Span("far", 0.5, 9.0, thread="workers"),
        Span("near", 2.0, 1.0),
        Span("attention", 0.5, 3.0),
        Span("attention", 4.0, 1.0),
        Span("step", 0.0, 6.0),
        Span("step", 6.0, 2.0),
    ]
    assert exclusive(spans) == {"step": 4.0, "attention": 2.0, "wait": 1.0, "near": 1.0}


def test_a_watched_engine_answers_alike_and_its_steps_add_up(tiny_models):
    path = str(tiny_models["llama"])
    expected = far_llm(path).generate(PROMPT, PARAMS)[0].token_ids
    llm = far_llm(path)
    stages = watch_engine(llm.engine)
    assert llm.generate(PROMPT, PARAMS)[0].token_ids == expected
    assert llm.stats().far_blocks > 0
    total = sum(span.seconds for span in stages.spans if span.stage == "step")
    parts = exclusive(stages.spans)
    assert sum(parts.values()) == pytest.approx(total)
    assert all(seconds >= 0 for seconds in parts.values())
    assert {"projections", "attention", "output and MLP", "scout", "digest scores", "choice"} < set(parts)
    assert {"near attention", "far hand-over", "far wait", "merge", "recall", "prompt"} < set(parts)
    far = [span for span in stages.spans if span.thread == "workers"]
    steps = [span for span in stages.spans if span.stage == "step"]
    assert far
    assert all(any(s.start <= f.start and f.start + f.seconds <= s.start + s.seconds for s in steps) for f in far)


def test_every_layer_of_a_step_is_seen_with_its_number(tiny_models):
    llm = far_llm(str(tiny_models["llama"]))
    stages = watch_engine(llm.engine)
    llm.generate(PROMPT, PARAMS)
    layers, steps = llm.engine.runner.decoder.shape.num_layers, PARAMS.max_tokens - 1
    for stage in ("projections", "attention", "output and MLP", "near attention", "layer"):
        assert [span.layer for span in stages.spans if span.stage == stage] == [*range(layers)] * steps
    assert {span.layer for span in stages.spans if span.stage == "scout"} == set(range(1, layers))
    for far in (span for span in stages.spans if span.thread == "workers"):
        waits = [span for span in stages.spans if span.stage == "far wait" and span.layer == far.layer]
        assert any(span.start + span.seconds >= far.start + far.seconds - 1e-3 for span in waits)


def test_a_job_without_work_has_no_span(tiny_models):
    llm = far_llm(str(tiny_models["llama"]))
    stages, pool = watch_engine(llm.engine), llm.engine.store.pages.pool
    nothing = torch.zeros(1, pool.k.shape[2], 3, dtype=torch.int32)
    q = torch.zeros(1, pool.k.shape[2], 1, pool.k.shape[4])
    llm.engine.workers.submit(q, pool.k[0], pool.v[0], BlockList(nothing, nothing), 1.0).wait()
    assert [span.stage for span in stages.spans] == ["queueing", "far wait"]
