"""A batch in any rows of the tables: the results are those of rows that follow one another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoutattention.runtime.workers import Workers

from .rig import Rig
from .test_invariants import scout

WORKERS = Workers(2)
LENGTHS = (97, 40, 150, 61)


def rig_in(rows, quota, **options):
    """A rig whose every step has its sequences in this order."""
    rig = Rig(scout(4, **options), quota, seed=3, workers=WORKERS)
    for tokens in LENGTHS:
        rig.add(tokens)
    rig.rows = list(rows)
    return rig


@pytest.mark.parametrize("quota", [None, 0, 9])
@pytest.mark.parametrize("rows", [(2, 0), (3, 1, 2), (1, 2), (3,)])
def test_without_a_budget_any_rows_are_exact(rows, quota):
    rig = rig_in(rows, quota, budget=None, predictor="oracle")
    assert max(rig.error(*rig.step()[:2]) for _ in range(9)) < 1e-5


@pytest.mark.parametrize("options", [{}, {"guard": 0.001}, {"on_miss": "fetch"}, {"on_miss": "drop"}], ids=str)
def test_the_order_of_a_batch_changes_nothing_but_the_order(options, monkeypatch):
    """Queries, keys and scouts are each sequence's own, whatever its place in the batch."""
    made = []
    for rows in ((0, 1, 2, 3), (2, 0, 3, 1)):
        rig = rig_in(rows, 9, budget=24, max_cpu_share=0.2, recall_interval=2, **options)
        draw = torch.randn

        def sorted_draw(*shape, rows=rows, draw=draw, **more):
            numbers = draw(*shape, **more)
            return (
                numbers[list(rows)] if shape[:1] == (4,) else numbers[:, list(rows)] if shape[:2] == (2, 4) else numbers
            )

        monkeypatch.setattr(torch, "randn", sorted_draw)
        torch.manual_seed(5)
        steps = [rig.step() for _ in range(12)]
        monkeypatch.undo()
        back = [rows.index(row) for row in range(4)]
        outs = torch.stack([torch.stack(out)[:, back] for _, out, _ in steps])
        made.append((outs, [(s.chosen_blocks, s.far_blocks, s.guarded_heads, s.recalled_bytes) for *_, s in steps]))
        interest = rig.store.slots.interest
    assert made[0][1] == made[1][1]
    assert torch.allclose(made[0][0], made[1][0], atol=1e-5)
    assert interest.isfinite().all()


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(4)), st.integers(1, 4), st.integers(0, 2**31))
def test_a_row_that_sits_out_keeps_what_it_has(rows, size, seed):
    rig = rig_in(rows[:size], 6, budget=24, recall_interval=1, guard=0.0)
    torch.manual_seed(seed)
    out = rows[size:]
    slots = rig.store.slots
    before = [state[:, out].clone() for state in (slots.interest, slots.content, slots.near_length)]
    closed = list(rig.store.closed)
    for _ in range(5):
        rig.step()
    for state, kept in zip((slots.interest, slots.content, slots.near_length), before, strict=True):
        assert torch.equal(state[:, out], kept)
    assert [rig.store.closed[row] for row in out] == [closed[row] for row in out]
    assert all(rig.store.closed[row] > closed[row] for row in rows[:size])


def test_rows_that_follow_one_another_are_not_copied():
    rig = rig_in((1, 2), 6)
    batch = rig.store.prepare((1, 2))
    assert batch.rows == slice(1, 3)
    assert batch.consecutive
    near = rig.store.slots.near(0, batch)
    assert near.length.untyped_storage().data_ptr() == rig.store.slots.near_length.untyped_storage().data_ptr()
    assert not rig.store.prepare((2, 1)).consecutive
