"""Recall policies are pure: hit history and residency in, moves out."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoutattention.attention.recall import due_rows, first_residents, propose_closed, propose_wanted
from scoutattention.cache.slots import NEVER, PINNED


def test_the_least_recently_chosen_slots_leave_first():
    used = torch.tensor([[[5, 2, 9, 3, PINNED]]])
    wanted = torch.tensor([[[10, 11, 12]]])
    absent = torch.tensor([[[True, False, True]]])
    moves = propose_wanted(used, wanted, absent, step=9)
    assert moves.slot.tolist() == [1, 3]
    assert moves.block.tolist() == [10, 12]


def test_empty_slots_are_filled_before_any_block_leaves():
    used = torch.tensor([[[5, NEVER, 4, PINNED]]])
    moves = propose_wanted(used, torch.tensor([[[7]]]), torch.tensor([[[True]]]), step=6)
    assert moves.slot.tolist() == [1]


def test_slots_chosen_in_this_step_stay():
    used = torch.tensor([[[6, 6, 5, PINNED]]])
    moves = propose_wanted(used, torch.tensor([[[7, 8]]]), torch.tensor([[[True, True]]]), step=6)
    assert (moves.slot.tolist(), moves.block.tolist()) == ([2], [7])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 6), st.integers(0, 8), st.integers(0, 2**31))
def test_moves_never_share_a_slot_and_never_use_a_foreign_one(slots, blocks, seed):
    torch.manual_seed(seed)
    used = torch.cat([torch.randint(0, 5, (2, 3, slots)), torch.full((2, 3, 1), PINNED)], -1)
    wanted = torch.rand(2, 3, blocks).argsort(-1)
    absent = torch.rand(2, 3, blocks) < 0.5
    moves = propose_wanted(used, wanted, absent, step=4)
    places = list(zip(moves.row.tolist(), moves.head.tolist(), moves.slot.tolist(), strict=True))
    assert len(places) == len(set(places))
    assert all(used[place] < 4 for place in places)
    assert all(slot < slots for _, _, slot in places)
    assert len(places) == sum(
        min(int(absent[b, h].sum()), int((used[b, h] < 4).sum())) for b in range(2) for h in range(3)
    )


def test_a_closed_block_takes_the_oldest_slot_but_not_the_sinks():
    content = torch.tensor([[0, 4, 5, 2], [0, 1, -1, 3]])
    used = torch.tensor([[1, 7, 7, 5, PINNED], [1, 2, NEVER, 3, PINNED]])
    moves = propose_closed(content, used, row=2, block=6, always=(1, 5))
    assert moves.row.tolist() == [2, 2]
    assert moves.slot.tolist() == [3, 2]
    assert moves.block.tolist() == [6, 6]


def test_a_head_full_of_sinks_and_recent_blocks_takes_none():
    moves = propose_closed(torch.tensor([[0, 5]]), torch.tensor([[1, 1, PINNED]]), row=0, block=6, always=(1, 5))
    assert moves.slot.numel() == 0


def test_layers_and_sequences_take_turns():
    lengths = torch.tensor([30, 31])
    due = [[layer for layer in range(6) if due_rows(lengths, layer, 3)[row]] for row in range(2)]
    assert due == [[0, 3], [2, 5]]
    assert due_rows(lengths + 1, 5, 3).tolist() == [True, False]
    assert not due_rows(lengths, 0, 0).any()


def test_the_first_residents_are_sink_recent_and_the_most_attended():
    mass = torch.tensor([[0.1, 0.0, 30.0, 20.0, 40.0, 0.0]])
    assert set(first_residents(mass, 4, sink=1, recent=1)[0].tolist()) == {0, 5, 4, 2}
    assert first_residents(mass, 9, sink=1, recent=1).shape == (1, 6)
    assert first_residents(mass, 0, sink=1, recent=1).shape == (1, 0)
