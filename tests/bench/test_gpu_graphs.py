"""Replayed choices in captured steps: those of the step that is played, and not of the one that was captured."""

from dataclasses import replace

import pytest
import torch

from scoutattention.bench import gpu_decode
from scoutattention.bench.gpu_plan import rivals
from scoutattention.engine.graphs import Graphs
from scoutattention.models.recording import Recording

from ..engine.test_graphs import tapes as tapes_of_steps
from ..models.test_recording import ABOUT, make_run
from .test_gpu_decode import BASE, MACHINE, make_bench

tapes = tapes_of_steps


@pytest.mark.parametrize("name", ["compute", "scout-plain", "scout"])
def test_captured_steps_choose_what_others_do(tapes, name):
    about = replace(ABOUT, context=128, block_size=16, budget=64)
    trace = Recording(about, {kind: make_run(layers=4, seed=seed) for seed, kind in enumerate(("plain", "calibrated"))})
    (rival,) = (rival for rival in rivals(BASE) if rival.name == name)
    bench = make_bench((256,), recorded=trace, machine=replace(MACHINE, kernels="plain"), warm_up=0, steps=12)
    made = []
    for recorder in (None, tapes):
        engine = gpu_decode.make_engine(bench, rival, (256, 2), None)
        if recorder is not None:
            engine.runner._graphs = Graphs(engine.runner._step, 2, torch.device("cpu"), recorder)
        made.append(gpu_decode.run(bench, rival, (256, 2), engine))
        engine.close()
    assert made[0].share > 0.02
    assert made[0].share == made[1].share
    assert made[0].link_bytes == made[1].link_bytes
    assert tapes.played > 8
