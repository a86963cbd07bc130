"""The guard: where a wrong scout may have done harm, the far part is the true query's, and nothing else changes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoutattention.kernels.native import NativeOps
from scoutattention.kernels.reference import merge
from scoutattention.runtime.workers import Workers
from scoutattention.types import Partial

from .rig import SHAPE, Rig, set_parts
from .test_invariants import prompts, scout

WORKERS = Workers(2)
OPS = NativeOps(WORKERS)
HEADS = (1, SHAPE.num_kv_heads, SHAPE.group_size, SHAPE.head_dim)


class Blurred:
    """Scouts that are the query `truth`, with another one in the KV heads of `wrong`."""

    def __init__(self, truth, wrong, other):
        self.scout = truth.clone()
        self.scout[:, wrong] = other

    def predict(self, layer, x, rope, rows):
        return self.scout


def prepared(truth, wrong=(), other=0.0, **options):
    """A rig whose scouts are the query `truth`, but in some KV heads."""
    rig = Rig(scout(4, budget=40, recall_interval=0, **options), 4, workers=WORKERS)
    rig.add(150)
    set_parts(rig.attention, predictor=Blurred(truth, list(wrong), other))
    return rig


def take_step(rig, truth):
    """One step of which every layer's query is `truth`: outputs [L, 1, H, G, D], and the step's numbers."""
    attend = rig.begin()
    k = torch.zeros(1, 2, 16)
    outs = [attend(layer, truth, k, k, torch.zeros(1, SHAPE.hidden_size)) for layer in range(SHAPE.num_layers)]
    return torch.stack(outs), rig.end()


def step(truth, wrong=(), other=0.0, **options):
    """The first step of a fresh rig."""
    return take_step(prepared(truth, wrong, other, **options), truth)


def test_the_scout_error_is_the_far_weight_times_the_relative_error_of_the_worst_query_head():
    near, far = (Partial(torch.zeros(1, 1, 2, 2), torch.tensor([[lse]]).log()) for lse in ([3.0, 1.0], [1.0, 0.0]))
    q, q_hat = torch.tensor([[[[3.0, 4.0], [1.0, 0.0]]]]), torch.tensor([[[[0.0, 8.0], [9.0, 0.0]]]])
    assert OPS.scout_error(far, near, q, q_hat).tolist() == [[pytest.approx(0.25 * 1.0)]]


def test_a_partial_of_what_was_missed_joins_that_of_the_scout_and_replaces_what_is_spoilt():
    mine, other = (Partial(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3)) for _ in range(2))
    spoilt = torch.tensor([[False, True]])
    mine.out[:, 1] = torch.nan
    got = OPS.merge(mine, other, without=spoilt)
    both = merge(mine, other)
    assert torch.allclose(got.out[:, 0], both.out[:, 0])
    assert torch.allclose(got.lse[:, 0], both.lse[:, 0])
    assert torch.allclose(got.out[:, 1], other.out[:, 1])
    assert torch.allclose(got.lse[:, 1], other.lse[:, 1])


@pytest.mark.parametrize("wrong", [(0, 1), (1,)])
def test_a_guarded_head_is_what_the_true_query_makes_of_it(wrong):
    truth = torch.randn(HEADS, generator=torch.Generator().manual_seed(5))
    exact, _ = step(truth, lookahead=0)
    spoilt, unguarded = step(truth, wrong, -truth[:, list(wrong)])
    guarded, stats = step(truth, wrong, -truth[:, list(wrong)], guard=0.02)
    assert torch.allclose(guarded, exact, atol=1e-6)
    assert not torch.allclose(spoilt, exact, atol=1e-2)
    assert unguarded.guarded_heads == 0
    assert stats.guarded_heads == len(wrong) * (SHAPE.num_layers - 1)  # the first layer has no scout
    again = stats.chosen_blocks - unguarded.chosen_blocks
    assert 0 < again == stats.far_blocks - unguarded.far_blocks <= 9 * stats.guarded_heads


def test_recall_goes_by_the_true_query_where_there_is_a_guard():
    """Scouts that want the opposite do not decide which blocks move in."""
    truth = torch.randn(HEADS, generator=torch.Generator().manual_seed(5))
    interests = {}
    for name, wrong, guard in (("right", (), 0.02), ("guarded", (0, 1), 0.02), ("unguarded", (0, 1), None)):
        rig = prepared(truth, wrong, -truth[:, list(wrong)], guard=guard)
        before = rig.store.slots.interest[1:, 0].clone()
        take_step(rig, truth)
        assert not torch.equal(before, rig.store.slots.interest[1:, 0])
        interests[name] = rig.store.slots.interest[1:, 0].clone()
    torch.testing.assert_close(interests["right"], interests["guarded"])
    assert not torch.allclose(interests["right"], interests["unguarded"], atol=1e-3)


def test_a_good_scout_is_left_alone():
    truth = torch.randn(HEADS, generator=torch.Generator().manual_seed(5))
    assert step(truth, (0,), truth[:, [0]] * 1.001, guard=0.02)[1].guarded_heads == 0


def test_a_scout_that_is_no_number_is_guarded():
    truth = torch.randn(HEADS, generator=torch.Generator().manual_seed(5))
    outs, stats = step(truth, (0,), torch.nan, guard=1.0)
    assert stats.guarded_heads == SHAPE.num_layers - 1
    assert torch.allclose(outs, step(truth, lookahead=0)[0], atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(prompts, st.integers(0, 9), st.sampled_from([1, 2]), st.integers(0, 2**31))
def test_recall_after_the_guard_seats_no_block_twice(lengths, quota, lookahead, seed):
    """What the scouts and the true queries wanted overlaps."""
    rig = Rig(scout(4, budget=24, recall_interval=1, guard=0.0, lookahead=lookahead), quota, seed, WORKERS)
    for tokens in lengths:
        rig.add(tokens + 40)
    for _ in range(6):
        rig.step()
        slots = rig.store.slots
        for layer, row, head in torch.cartesian_prod(*map(torch.arange, (3, len(lengths), 2))).tolist():
            content = slots.content[layer, row, head]
            held = content[content >= 0]
            assert held.unique().numel() == held.numel()
            assert torch.equal(content[slots.slot_of[layer, row, head, held]], held)
