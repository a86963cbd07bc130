"""The native passes over chosen blocks against their plain twins."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoutattention.errors import KernelError
from scoutattention.kernels import reference
from scoutattention.kernels.native import NativeOps
from scoutattention.runtime.workers import Workers
from scoutattention.types import GuardRequest, SplitRequest

OPS = NativeOps(Workers(1))
H, BLOCKS, WIDTH, SLOTS = 2, 9, 12, 5
seeds = st.integers(0, 2**31)


def flags(*shape):
    return torch.rand(shape) < 0.5


def chosen(B, N):
    return torch.rand(B, H, BLOCKS).argsort(-1)[..., :N].contiguous()


def split_request(B, N):
    slot_of = torch.randint(0, SLOTS + 1, (B, H, WIDTH))
    closed = torch.randint(0, BLOCKS + 1, (B,))
    rows = (flags(B), flags(B), torch.rand(B))
    counts = torch.full((2, B, H), 7)
    candidates, picks = torch.rand(B, H, BLOCKS).argsort(-1), chosen(B, N) if N % 2 else None
    wishes = torch.rand(B, H, BLOCKS)[..., :N]
    return SplitRequest(candidates, picks, wishes, closed, (slot_of, SLOTS), rows, 2, counts)


def guard_request(B, N):
    wanted = (chosen(B, N), flags(B, H, N), torch.rand(B, H, N) / 4)
    scout_error = torch.rand(B, H).masked_fill(torch.rand(B, H) < 0.2, torch.nan)
    return GuardRequest(wanted, (chosen(B, N), flags(B, H, N)), scout_error, flags(B), 0.5, torch.full((2, B, H), 7))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, BLOCKS), seeds)
def test_a_split_choice_is_the_reference(B, N, seed):
    torch.manual_seed(seed)
    what = split_request(B, N)
    got, got_counts = OPS.split_choice(what), what.counts.clone()
    wanted = reference.split_choice(what)
    assert torch.equal(got.blocks, wanted.blocks)
    assert torch.equal(got.attended, wanted.attended)
    assert torch.equal(got.absent, wanted.absent)
    assert torch.equal(got_counts, what.counts)
    assert torch.equal(got_counts, torch.stack([mask.sum(-1) for mask in wanted[1:]]))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, BLOCKS), seeds)
def test_what_is_late_is_the_reference(B, N, seed):
    torch.manual_seed(seed)
    what = guard_request(B, N)
    got, got_counts = OPS.find_late(what), what.counts.clone()
    spoilt, late = reference.find_late(what)
    assert torch.equal(got.spoilt, spoilt)
    assert torch.equal(got.late, late)
    assert torch.equal(got_counts, what.counts)
    assert torch.equal(got_counts, torch.stack([(spoilt | late.any(-1)).long(), late.sum(-1)]))


def test_interest_is_updated_as_the_reference_does():
    interest, blocks, wishes = torch.rand(3, H, WIDTH), chosen(3, 4), torch.rand(3, H, 4)
    rows = torch.tensor([True, False, True])
    expected = interest.clone()
    reference.update_interest(expected, blocks, wishes, rows, 0.85)
    before = interest.clone()
    OPS.update_interest(interest, blocks, wishes, rows, 0.85)
    torch.testing.assert_close(interest, expected)
    assert torch.equal(interest[1], before[1])
    kept = torch.ones(3, H, WIDTH, dtype=torch.bool).scatter(-1, blocks, value=False)[0]
    torch.testing.assert_close(interest[0][kept], 0.85 * before[0][kept])


def test_heads_are_late_with_what_was_missed_if_it_is_much_and_with_everything_where_the_scout_is_spoilt():
    wishes = torch.tensor([[[0.5, 0.2, 0.1], [0.9, 0.02, 0.02]]])
    wanted = (torch.tensor([[[0, 1, 2]] * 2]), torch.tensor([[[False, True, True]] * 2]), wishes)
    ahead = (torch.tensor([[[3, 2, 1], [0, 1, 3]]]), torch.tensor([[[True, True, False], [False, False, True]]]))
    none, one, both = [False] * 3, [False, True, False], [False, True, True]
    for limit, errors, late in ((0.1, (0.0, 0.0), [one, none]), (0.3, (0.0, 0.4), [none, both])):
        counts = torch.zeros(2, 1, 2, dtype=torch.int64)
        what = GuardRequest(wanted, ahead, torch.tensor([errors]), torch.tensor([True]), limit, counts)
        got = OPS.find_late(what)
        assert got.late.tolist() == [late]
        assert got.spoilt.tolist() == [[False, errors[1] > limit]]


@pytest.mark.parametrize(
    ("function", "make", "name", "spoil"),
    [
        ("split_choice", split_request, "candidates", lambda t: t + BLOCKS),
        ("split_choice", split_request, "candidates", lambda t: t - BLOCKS),
        ("split_choice", split_request, "candidates", lambda t: t[..., ::2]),
        ("split_choice", split_request, "picks", lambda t: torch.full((3, H, 4), BLOCKS)),
        ("split_choice", split_request, "picks", lambda t: torch.full((3, H, 4), -1)),
        ("split_choice", split_request, "picks", lambda t: torch.zeros((3, H, 3), dtype=torch.int64)),
        ("split_choice", split_request, "wishes", lambda t: t.double()),
        ("split_choice", split_request, "closed", lambda t: t[:1]),
        ("split_choice", split_request, "slots", lambda t: (t[0].int(), t[1])),
        ("split_choice", split_request, "slots", lambda t: (t[0][..., ::2], t[1])),
        ("split_choice", split_request, "rows", lambda t: (t[0].int(), *t[1:])),
        ("find_late", guard_request, "scout_error", lambda t: t.double()),
        ("find_late", guard_request, "wanted", lambda t: (t[0] + (1 << 27), *t[1:])),
        ("find_late", guard_request, "scouted", lambda t: (t[0] - BLOCKS, t[1])),
        ("find_late", guard_request, "scouted", lambda t: (t[0], t[1][..., :-1])),
        ("find_late", guard_request, "rows", lambda t: t[:1]),
    ],
)
def test_what_does_not_fit_is_refused(function, make, name, spoil):
    torch.manual_seed(1)
    what = make(3, 4)
    getattr(OPS, function)(what)
    with pytest.raises(KernelError):
        getattr(OPS, function)(what._replace(**{name: spoil(getattr(what, name))}))


def test_wishes_for_blocks_that_have_no_interest_are_refused():
    blocks, rows = torch.tensor([[[0, 9]] * H]), torch.tensor([True])
    with pytest.raises(KernelError, match=r"9 is outside 0\.\.8"):
        OPS.update_interest(torch.rand(1, H, BLOCKS), blocks, torch.rand(1, H, 2), rows, 0.5)
