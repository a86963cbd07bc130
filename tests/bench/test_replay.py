"""Replaying a recording in another shape: the places that blocks get, and who gets whose choice."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from scoutattention.attention.choose import Choice
from scoutattention.bench.gpu.replay import MarkedPredictor, Replay, ReplayChooser
from scoutattention.cache.batch import Batch
from scoutattention.models.recording import About
from scoutattention.shape import ModelShape

from ..models.test_recording import ABOUT, make_run

SIZE = 8
RECORDED = 8  # blocks of the recorded prompt
CPU = torch.device("cpu")


def make_shape(layers=6, heads=4):
    return ModelShape(layers, 2 * heads, heads, 16, 64, 64, 64, 10_000)


def make_replay(closed=20, run=None, **shape):
    return Replay(ABOUT, run or make_run(), make_shape(**shape), closed * SIZE)


def batch_of(step, begun, size=2):
    now, rows = begun + step // SIZE, torch.arange(size)
    fill = torch.full((size,), step % SIZE)
    return Batch(
        size,
        size,
        tuple(range(size)),
        slice(0, size),
        True,
        rows,
        torch.full((size,), now),
        fill,
        rows,
        (now,) * size,
        (),
        now,
        0,
    )


@settings(deadline=None)
@given(st.integers(RECORDED, 300), st.integers(0, 40), st.integers(1, 3), st.integers(0, 5))
def test_different_blocks_have_different_places(closed, step, recent, more):
    """`more`: blocks that the replay has closed beyond those of the recorded step, as when the recording goes round."""
    about = About(**(ABOUT.__dict__ | {"recent_blocks": recent}))
    source = Replay(about, make_run(), make_shape(), closed * SIZE)
    recorded, now = RECORDED + step // SIZE, closed + step // SIZE + more
    places = source.places(step, torch.arange(recorded), now).tolist()
    assert len(set(places)) == recorded
    assert places == sorted(places)
    assert places[0] == 0
    assert places[-recent:] == list(range(now - recent, now))


def test_a_prompts_blocks_keep_their_relative_places():
    source = make_replay(closed=32)
    assert source.places(0, torch.arange(8), 32).tolist() == [0, 4, 8, 12, 16, 20, 24, 31]
    assert source.places(8, torch.arange(9), 33).tolist() == [0, 4, 8, 12, 16, 20, 24, 28, 32]


def test_depth_is_stretched_and_heads_go_round():
    source = make_replay(layers=5)
    assert source.layers.tolist() == [0, 0, 1, 2, 2]
    assert source.heads(3).tolist() == [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
    assert make_replay(layers=1).layers.tolist() == [0]


def test_what_was_resident_is_resident():
    run = make_run()
    held = make_replay(32, run, layers=3).residents(2, 2)
    assert held.shape == (2, 4, 32)
    assert torch.equal(held[1, 0, ::4], run.resident[2, 1])
    assert int(held.sum()) == 4 * int(run.resident[2].sum())


class Asked:
    """A chooser and a predictor that count."""

    def __init__(self):
        self.calls = []

    def prepare(self, batch):
        self.calls.append("prepare")

    def scan(self, layer, q, batch, rows):
        self.calls.append((layer, "scan", rows))
        return Choice(None, None, None, "found", None)

    def judge(self, layer, q, batch, candidates, pages):
        self.calls.append((layer, "judge", candidates))

    def predict(self, layer, x, rope, rows):
        return x + layer


@pytest.fixture
def asked():
    return Asked()


def test_scouts_get_what_scouts_chose_and_true_queries_what_they_did(asked):
    run, predictor = make_run(), MarkedPredictor(asked)
    chooser = ReplayChooser(make_replay(8, run, layers=3, heads=2), CPU, chooser=asked, predictor=predictor)
    for step in range(7):  # two more than were recorded
        batch = batch_of(step, 8)
        chooser.prepare(batch)
        q = torch.zeros(2, 2, 1, 16)
        scout = predictor.predict(1, q, None, batch.rows)
        found = chooser.scan(1, scout, batch).candidates
        for choice, kind in (
            (chooser.scan(1, scout, batch), run.scouts),
            (chooser.judge(1, q, batch, found), run.true),
            (chooser.judge(1, scout.clone(), batch), run.true),
        ):
            expected = kind.blocks[step % 5, 1].long()
            assert torch.equal(choice.blocks, torch.stack([expected, expected.flip(0)]))
            assert choice.valid.all()
            wished = kind.wishes[step % 5, 1].float()
            assert torch.equal(choice.wishes[0], wished)
            assert torch.equal(choice.candidates, choice.blocks)
            assert torch.equal(choice.candidate_wishes, choice.wishes)
    scans, judged = [(1, "scan", None)] * 2, [(1, "judge", "found"), (1, "judge", None)]
    assert asked.calls == ["prepare", *scans, *judged] * 7, "the work is on what a scan found"


class Queued(TorchDispatchMode):
    """The names of operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_steps_choices_are_made_before_it_for_all_layers(asked):
    """A layer is given views of what every step of as many sequences and the same width has."""
    run, predictor, places = make_run(), MarkedPredictor(asked), {}
    source = make_replay(20, run, layers=5)
    chooser = ReplayChooser(source, CPU, chooser=asked, predictor=predictor)
    for step in range(12):
        now = batch_of(step, 20, 2 + step % 2)
        chooser.prepare(now)
        for layer in range(5):
            q = torch.zeros(now.size, 4, 1, 16)
            scout = predictor.predict(layer, q, None, now.rows)
            for look, kind in (
                (partial(chooser.scan, layer, scout), run.scouts),
                (partial(chooser.judge, layer, q), run.true),
            ):
                with Queued() as queued:
                    choice = look(now)
                assert queued.names <= {"select"}
                of_layer = (part[step % 5][source.layers[layer]][source.heads(now.size)] for part in kind)
                recorded, wishes = of_layer
                blocks, wishes = source.places(step % 5, recorded.long(), now.counts[0]), wishes.float()
                assert torch.equal(choice.blocks, blocks)
                assert torch.equal(choice.wishes, wishes)
                assert choice.blocks.is_contiguous()
                assert choice.wishes.is_contiguous()
                where = (choice.blocks.data_ptr(), choice.wishes.data_ptr())
                key = (now.size, now.width, layer, kind is run.true)
                assert places.setdefault(key, where) == where
    assert len(places) == 2 * 2 * 5 * 2
