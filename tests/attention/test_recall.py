"""Recall while decoding: what drifts into interest comes, as often as its layer needs it, and what must stay stays."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch

from scoutattention.kernels.native import NativeOps
from scoutattention.runtime.workers import Workers

from .rig import SHAPE, Rig
from .test_invariants import scout

WORKERS = Workers(2)
STEPS_TO_RECOVER = 12


def rig_of(quota=8, tokens=200, **options):
    rig = Rig(
        scout(4, **({"predictor": "oracle", "budget": 24, "max_cpu_share": None} | options)),
        quota,
        seed=1,
        workers=WORKERS,
    )
    rig.add(tokens)
    return rig


def run(rig, q, steps):
    """Steps whose every query is q [1, H, G, D] and whose new keys are zero; their numbers."""
    stats = []
    for _ in range(steps):
        attend, nothing = rig.begin(), torch.zeros(1, 2, 16)
        for layer in range(SHAPE.num_layers):
            attend(layer, q, nothing, nothing, torch.zeros(1, SHAPE.hidden_size))
        stats.append(rig.end())
    return stats


def share(stats):
    return stats.far_blocks / stats.chosen_blocks


def subjects():
    return 2 * torch.randn(2, 1, 2, 3, 16, generator=torch.Generator().manual_seed(3))


def test_an_abrupt_change_of_subject_raises_the_share_and_recall_lowers_it_again():
    rig, (first, second) = rig_of(recall_interval=8, recall_target=0.05), subjects()
    settled = run(rig, first, 20)[-1]
    after = run(rig, second, STEPS_TO_RECOVER)
    assert share(settled) <= 0.1
    assert share(after[0]) > 0.25
    assert share(after[-1]) <= 0.1
    never = rig_of(recall_interval=0)
    run(never, first, 20)
    assert share(run(never, second, STEPS_TO_RECOVER)[-1]) > 0.25


def test_recalls_come_sooner_after_the_change_than_before():
    rig, (first, second) = rig_of(recall_interval=8, recall_target=0.05), subjects()
    calm = sum(stats.recalls for stats in run(rig, first, 32)[16:])
    hasty = sum(stats.recalls for stats in run(rig, second, 4))
    assert hasty >= 4
    assert calm / 16 < hasty / 4


def test_without_a_share_layers_recall_by_the_clock_and_in_turns():
    rig = rig_of(recall_interval=3, recall_target=None)
    recalls = [stats.recalls for stats in run(rig, subjects()[0], 9)]
    assert recalls == [1] * 9


def test_a_block_just_closed_gets_a_slot_and_sinks_and_recent_blocks_keep_theirs():
    rig = rig_of(recall_interval=1, sink_blocks=2, recent_blocks=2, quota=5)
    slots = rig.store.slots
    slots.interest[:, 0, :, [0, 1]] = 0
    for _ in range(20):
        run(rig, subjects()[0], 1)
        closed = rig.store.closed[0]
        always = torch.tensor([0, 1, closed - 2, closed - 1])
        assert slots.resident(0, slice(1))[0, :, always].all()
        assert (slots.content[:, 0, :, :5] >= 0).all()
    assert closed == 55


class Late(NativeOps):
    """A stream beside the steps, as late as it may be: copies are made when they are waited for, after NaN."""

    def __init__(self, workers):
        super().__init__(workers)
        self.deferred = True  # for copies
        self._beside = False
        self._waiting = []
        self._marks = {}

    @contextmanager
    def after(self, *tensors):
        self._beside = True
        yield
        self._beside = False

    def copy_blocks(self, source, target, copies):
        if not self._beside:
            super().copy_blocks(source, target, copies)
            return
        there = copies.page >= 0
        for pool in target:
            pool[copies.layer[there], copies.entry[there], copies.head[there]] = torch.nan
        self._waiting.append(partial(super().copy_blocks, source, target, copies))

    def mark(self, index):
        self._marks[index] = list(self._waiting)

    def wait(self, index):
        self._copy(self._marks.pop(index, []))

    def join(self):
        self._copy(list(self._waiting))

    def _copy(self, until):
        for copy in until:
            if copy in self._waiting:
                self._waiting.remove(copy)
                copy()


@pytest.mark.parametrize("on_miss", ["compute", "fetch", "drop"])
def test_what_is_recalled_beside_a_step_is_waited_for(on_miss):
    results = []
    for late in (False, True):
        rig = rig_of(
            recall_interval=2, recall_target=None, on_miss=on_miss, recent_blocks=0, quota=7, predictor="plain"
        )
        if late:
            late_copies = Late(WORKERS)
            rig.store.side = rig.store.transfers._side = rig.store.transfers._ops = late_copies
        rig.add(90)
        steps = [rig.step() for _ in range(12)]
        assert sum(stats.recalled_bytes for *_, stats in steps) > 0
        results.append([out for _, outs, _ in steps for out in outs])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*results, strict=True))


def test_no_slot_is_filled_twice_between_two_steps():
    """Not even one of a block that was just given a slot, and is no recent one."""
    rig = rig_of(recall_interval=1, recall_target=None, recent_blocks=0, quota=7)
    moved = 0
    for seed in range(24):
        torch.manual_seed(seed)
        rig.step()
        layer, page, entry, head = rig.store.transfers._listed[0]
        places = torch.stack((layer, entry, head))[:, page >= 0]
        moved += places.shape[1]
        assert places.unique(dim=1).shape == places.shape
    assert moved > 24


def test_bytes_recalled_are_those_of_the_blocks_that_came():
    rig, (first, second) = rig_of(recall_interval=1, recall_target=None, tokens=201), subjects()
    run(rig, first, 8)
    before = rig.store.slots.resident(slice(None), 0)
    (stats,) = run(rig, second, 1)
    came = rig.store.slots.resident(slice(None), 0) & ~before
    assert stats.recalled_bytes == came.sum() * 2 * 4 * 16 * 4 > 0


def test_where_every_slot_must_stay_a_closed_block_gets_none():
    rig = rig_of(sink_blocks=2, recent_blocks=0, quota=2, tokens=203)
    run(rig, subjects()[0], 1)
    assert rig.store.closed[0] == 51
    assert not rig.store.slots.resident(0, slice(1))[0, :, 50].any()
    assert rig.store.slots.resident(0, slice(1))[0, :, :2].all()


def test_interest_begins_with_what_the_prompt_attended_to():
    rig = rig_of()
    interest = rig.store.slots.interest[:, 0, :, :50]
    assert (interest.sum(-1) < 1 + 1e-5).all()
    assert (interest.sum(-1) > 0.8).all()
    rig.store.release(0)
    rig.store.admit(0, 10, 2)
    assert not rig.store.slots.interest[:, 0].any()


def test_blocks_that_close_together_each_get_a_slot():
    rig = Rig(scout(4, budget=40, recall_interval=0), 6, workers=WORKERS)
    for tokens in (99, 59, 58):
        rig.add(tokens)
    rig.step()
    assert rig.store.closed[:3] == [25, 15, 14]
    for layer in range(SHAPE.num_layers):
        resident = rig.store.slots.resident(layer, slice(3))
        assert resident[0, :, 24].all()
        assert resident[1, :, 14].all()
        assert resident[2, :, 13].all()
        assert not resident[2, :, 14].any()
