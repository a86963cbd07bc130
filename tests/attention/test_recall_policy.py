"""Recall policies are pure: wishes and residency in, moves out."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoutattention.attention.recall import first_residents
from scoutattention.kernels.reference_recall import (
    FREE,
    FULL,
    MARGIN,
    progress,
    propose_interesting,
    propose_wanted,
)


def test_chosen_blocks_come_where_least_is_lost_and_present_ones_stay():
    worth, content = torch.tensor([[[0.1, 0.2, 0.9, 0.3, FULL]]]), torch.tensor([[[20, 11, 21, 22, -1]]])
    chosen, absent = torch.tensor([[[11, 10, 20, 12]]]), torch.tensor([[[False, True, False, True]]])
    moves, _ = propose_wanted(worth, chosen, absent, content)
    assert (moves.slot.tolist(), moves.block.tolist()) == ([3, 2], [10, 12])


def test_a_chosen_block_finds_no_slot_where_all_hold_chosen_ones():
    moves, _ = propose_wanted(
        torch.tensor([[[0.1, 0.2]]]), torch.tensor([[[1, 2, 3]]]), torch.tensor([[[False, False, True]]]),
        torch.tensor([[[2, 1]]]),
    )  # fmt: skip
    assert moves.slot.numel() == 0


def test_empty_slots_are_filled_before_any_block_leaves():
    worth, content = torch.tensor([[[0.5, FREE, 0.0]]]), torch.tensor([[[3, -1, 4]]])
    assert propose_wanted(worth, torch.tensor([[[7]]]), torch.tensor([[[True]]]), content)[0].slot.tolist() == [1]
    resident = torch.tensor([[[False, False, False, True, True]]])
    moves, _ = propose_interesting(torch.tensor([[[0.0, 0.2, 0.1, 0.5, 0.0]]]), resident, worth, 9)
    assert (moves.slot.tolist(), moves.block.tolist()) == ([1, 2], [1, 2])


def test_what_comes_must_interest_clearly_more_than_what_leaves():
    resident = torch.tensor([[[True, True, False, False]]])
    for factor, count in ((0.99, 0), (1.01, 1)):
        interest = torch.tensor([[[0.1, 0.3, 0.1 * MARGIN * factor, 0.1]]])
        moves, _ = propose_interesting(interest, resident, torch.tensor([[[0.3, 0.1]]]), 2)
        assert moves.block.tolist() == [2] * count
        assert moves.slot.tolist() == [1] * count


def test_a_recall_moves_only_so_many_and_the_most_interesting_first():
    resident = torch.zeros(1, 2, 5, dtype=torch.bool)
    interest = torch.tensor([[[0.1, 0.5, 0.2, 0.4, 0.3], [0.0, 0.0, 0.9, 0.0, 0.0]]])
    moves, _ = propose_interesting(
        interest.masked_fill(interest == 0, -torch.inf), resident, torch.full((1, 2, 4), FREE), 2
    )
    assert list(zip(moves.head.tolist(), moves.block.tolist(), strict=True)) == [(0, 1), (0, 3), (1, 2)]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 6), st.integers(0, 8), st.integers(0, 2**31))
def test_moves_never_share_a_slot_and_never_use_a_full_one(slots, blocks, seed):
    torch.manual_seed(seed)
    worth = torch.rand(2, 3, slots)
    worth = worth.masked_fill(worth < 0.2, FREE).masked_fill(worth > 0.8, FULL)
    content = torch.full((2, 3, slots), -1)
    chosen = torch.rand(2, 3, blocks).argsort(-1)
    absent = torch.rand(2, 3, blocks) < 0.5
    moves, _ = propose_wanted(worth, chosen, absent, content)
    places = list(zip(moves.row.tolist(), moves.head.tolist(), moves.slot.tolist(), strict=True))
    assert len(places) == len(set(places))
    assert all(worth[place] < FULL for place in places)
    assert len(places) == sum(
        min(int(absent[b, h].sum()), int((worth[b, h] < FULL).sum())) for b in range(2) for h in range(3)
    )


def test_recalls_come_in_proportion_to_the_share():
    far, chosen = torch.tensor([[2, 4, 0, 0]]), torch.tensor([[20, 20, 20, 0]])
    assert progress(far, chosen, 0.1, 8).tolist() == [[1 / 8, 1 / 4, 0.0, 0.0]]
    assert progress(far, chosen, None, 8).tolist() == [[1 / 8] * 4]
    assert progress(far, chosen, 0.1, 0).tolist() == [[0.0] * 4]


def test_the_first_residents_are_sink_recent_and_the_most_attended():
    mass = torch.tensor([[0.1, 0.0, 30.0, 20.0, 40.0, 0.0]])
    assert set(first_residents(mass, 4, sink=1, recent=1)[0].tolist()) == {0, 5, 4, 2}
    assert first_residents(mass, 9, sink=1, recent=1).shape == (1, 6)
    assert first_residents(mass, 0, sink=1, recent=1).shape == (1, 0)
