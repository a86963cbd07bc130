"""How much a layer of a decode step queues on a device: each kernel costs time to begin, however small it is."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from scoutattention import ScoutConfig
from scoutattention.config import EngineConfig
from scoutattention.engine.engine import Engine
from scoutattention.engine.runner import Runner
from scoutattention.kernels.triton.base import Launch
from scoutattention.models.formats.dummy import dummy_decoder
from scoutattention.models.shapes.known import shape_config

CPU = torch.device("cpu")
PROMPT = [token % 250 for token in range(400)]
MOST = 26
"""Kernels and copies of a layer whose scout, far part and guard are all at work."""


class Counting(TorchDispatchMode):
    """Counts operations that are more than another view of their input, and what Triton is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.queued = 0
        run = Launch.run

        def counted(launch: Launch) -> None:
            self.queued += 1
            with _disable_current_modes():
                run(launch)

        monkeypatch.setattr(Launch, "run", counted)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.queued += func._schema.is_mutable or (not _is_view(out, args) and "empty" not in str(func))
        return out


def _is_view(out: object, args: tuple) -> bool:
    given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
    made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    return all(leaf.untyped_storage().data_ptr() in given for leaf in made)


def queued(layers: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of one step of two sequences."""
    decoder = dummy_decoder({**shape_config("tiny"), "num_hidden_layers": layers}, 512, CPU)
    scout = ScoutConfig().changed(budget=128, block_size=16, true_query_layers=(0,))
    engine_config = EngineConfig(kernels="triton", device_memory="slots", max_model_len=512, max_num_seqs=2)
    made = Engine(decoder, scout, engine_config)
    for row in range(2):
        made.store.admit(row, made.plan.blocks(512), made.plan.quota(2, 512))
        made.runner.prefill(row, PROMPT)
    made.runner.decode([1, 2], [400, 400])
    step = made.runner.attention.prepare(range(2))
    made.runner.attention.start(step)
    assert step.work.scouted == (False,) + (layers - 1) * (True,)
    with torch.inference_mode(), Counting(monkeypatch) as counting:
        made.runner._run(step)
    made.close()
    return counting.queued


def test_a_layer_queues_few_kernels(streamed, monkeypatch):
    assert queued(5, monkeypatch) - queued(4, monkeypatch) <= MOST


def test_a_gpu_has_a_piece_to_work_on_while_the_piece_before_is_waited_for(monkeypatch):
    done = []

    class Event:
        made = 0

        def __init__(self):
            Event.made += 1
            self.number = Event.made

        def record(self):
            done.append(f"{self.number} queued")

        def synchronize(self):
            done.append(f"{self.number} waited for")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    runner = Runner(SimpleNamespace(device=torch.device("cuda")), None, None, None)
    for _ in range(3):
        runner.settle()
    assert done == ["1 queued", "2 queued", "1 waited for", "3 queued", "2 waited for"]
    Runner(SimpleNamespace(device=CPU), None, None, None).settle()
    assert len(done) == 5
