"""Replayed choices as on a GPU: in captured steps those of the step that is played, and alike on any kernels."""

from dataclasses import replace

import pytest

from scoutattention.bench.gpu import decode as gpu_decode
from scoutattention.bench.gpu.cases import rivals
from scoutattention.bench.gpu.rounds import measure
from scoutattention.models.recording import Recording
from scoutattention.runtime.graphs import Graphs

from ..models.test_recording import ABOUT, make_run
from ..runtime.test_graphs import tapes as tapes_of_steps
from .test_gpu_decode import BASE, ENGINE_CONFIG, make_bench

tapes = tapes_of_steps


def a_case(name, kernels, steps):
    """An engine's name as settings, and what it needs to run on some kernels."""
    about = replace(ABOUT, context=128, block_size=16, budget=64)
    trace = Recording(about, {kind: make_run(layers=4, seed=seed) for seed, kind in enumerate(("plain", "calibrated"))})
    (rival,) = (rival for rival in rivals(BASE) if rival.name == name)
    engine_config = replace(ENGINE_CONFIG, kernels=kernels)
    return rival, make_bench((256,), recorded=trace, engine_config=engine_config, warm_up=0, steps=steps)


@pytest.mark.parametrize("name", ["fetch", "scout"])
def test_kernels_do_not_matter_to_what_is_chosen(name):
    made = []
    for kernels in ("native", "triton"):
        rival, bench = a_case(name, kernels, steps=2)
        made += measure(bench, [rival]).results
    assert made[0].share == made[1].share > 0
    assert made[0].link_bytes == made[1].link_bytes


@pytest.mark.parametrize("name", ["compute", "scout-plain", "scout"])
def test_captured_steps_choose_what_others_do(tapes, name, monkeypatch):
    monkeypatch.setattr(gpu_decode, "LONGEST_S", 100.0)  # all steps, however slow the machine is
    (rival, bench), made = a_case(name, "plain", steps=12), []
    for recorder in (None, tapes):
        engine = gpu_decode.make_engine(bench, rival, (256, 2), None)
        if recorder is not None:
            engine.runner._graphs = Graphs(recorder)
        steps, trace = gpu_decode.time_steps(bench, rival, (256, 2), engine)
        engine.close()
        did = [(one.stats.chosen_blocks, one.stats.far_blocks, one.stats.recalled_bytes) for one in steps]
        made.append((did, gpu_decode.to_result(rival, (256, 2), steps, trace).steps))
    assert sum(far for _, far, _ in made[0][0]) > 0.02 * sum(chosen for chosen, _, _ in made[0][0])
    assert made[0][0] == made[1][0]
    assert made[0][1] == 12
    assert 8 <= made[1][1] < 12, "steps that are captured do not count"
    assert tapes.played > 8
