"""The native passes over ranked blocks against their plain twins."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoutattention.errors import KernelError
from scoutattention.kernels import reference
from scoutattention.kernels.native.choice import blend, find_late, sift
from scoutattention.runtime.workers import Workers
from scoutattention.types import Lateness, Sifting

WORKERS = Workers(1)
H, BLOCKS, WIDTH, SLOTS = 2, 9, 12, 5
seeds = st.integers(0, 2**31)


def flags(*shape):
    return torch.rand(shape) < 0.5


def chosen(B, N):
    return torch.rand(B, H, BLOCKS).argsort(-1)[..., :N].contiguous()


def sifting(B, N):
    slot_of = torch.randint(0, SLOTS + 1, (B, H, WIDTH))
    closed = torch.randint(0, BLOCKS + 1, (B,))
    rows = (flags(B), flags(B), torch.rand(B))
    return Sifting(chosen(B, N), torch.rand(B, H, BLOCKS), closed, (slot_of, SLOTS), rows, always=2)


def lateness(B, N):
    wanted = (chosen(B, N), flags(B, H, N), torch.rand(B, H, BLOCKS) / 4)
    doubt = torch.rand(B, H).masked_fill(torch.rand(B, H) < 0.2, torch.nan)
    return Lateness(wanted, (chosen(B, N), flags(B, H, N)), doubt, flags(B), limit=0.5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, BLOCKS), seeds)
def test_what_is_sifted_is_the_reference(B, N, seed):
    torch.manual_seed(seed)
    what = sifting(B, N)
    got, wanted = sift(WORKERS, what), reference.sift(what)
    assert torch.equal(got.valid, wanted[0])
    assert torch.equal(got.absent, wanted[1])
    assert torch.equal(got.counts, torch.stack([mask.sum(-1) for mask in wanted]))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, BLOCKS), seeds)
def test_what_is_late_is_the_reference(B, N, seed):
    torch.manual_seed(seed)
    what = lateness(B, N)
    got, (spoilt, late) = find_late(WORKERS, what), reference.find_late(what)
    assert torch.equal(got.spoilt, spoilt)
    assert torch.equal(got.late, late)
    assert torch.equal(got.counts, torch.stack([(spoilt | late.any(-1)).long(), late.sum(-1)]))


def test_interest_is_blended_as_the_reference_does():
    interest, wishes, rows = torch.rand(3, H, WIDTH), torch.rand(3, H, BLOCKS), torch.tensor([True, False, True])
    expected = interest.clone()
    reference.blend(expected, wishes, rows, 0.85)
    before = interest.clone()
    blend(WORKERS, interest, wishes, rows, 0.85)
    torch.testing.assert_close(interest, expected)
    assert torch.equal(interest[1], before[1])
    assert not torch.equal(interest[0], before[0])


def test_heads_are_late_with_what_was_missed_if_it_is_much_and_with_everything_where_the_scout_is_doubtful():
    wishes = torch.tensor([[[0.5, 0.2, 0.1, 0.1, 0.06, 0.04], [0.9, 0.02, 0.02, 0.02, 0.02, 0.02]]])
    wanted = (torch.tensor([[[0, 1, 2]] * 2]), torch.tensor([[[False, True, True]] * 2]), wishes)
    ahead = (torch.tensor([[[3, 2, 1], [0, 1, 3]]]), torch.tensor([[[True, True, False], [False, False, True]]]))
    none, one, both = [False] * 3, [False, True, False], [False, True, True]
    for limit, doubts, late in ((0.1, (0.0, 0.0), [one, none]), (0.3, (0.0, 0.4), [none, both])):
        got = find_late(WORKERS, Lateness(wanted, ahead, torch.tensor([doubts]), torch.tensor([True]), limit))
        assert got.late.tolist() == [late]
        assert got.spoilt.tolist() == [[False, doubts[1] > limit]]


@pytest.mark.parametrize(
    ("function", "make", "name", "spoil"),
    [
        (sift, sifting, "blocks", lambda t: t + BLOCKS),
        (sift, sifting, "blocks", lambda t: t - BLOCKS),
        (sift, sifting, "wishes", lambda t: t.double()),
        (sift, sifting, "closed", lambda t: t[:1]),
        (sift, sifting, "slots", lambda t: (t[0].int(), t[1])),
        (sift, sifting, "slots", lambda t: (t[0][..., ::2], t[1])),
        (sift, sifting, "rows", lambda t: (t[0].int(), *t[1:])),
        (find_late, lateness, "doubt", lambda t: t.double()),
        (find_late, lateness, "wanted", lambda t: (t[0] + BLOCKS, *t[1:])),
        (find_late, lateness, "ahead", lambda t: (t[0] - BLOCKS, t[1])),
        (find_late, lateness, "ahead", lambda t: (t[0], t[1][..., :-1])),
        (find_late, lateness, "rows", lambda t: t[:1]),
    ],
)
def test_what_does_not_fit_is_refused(function, make, name, spoil):
    torch.manual_seed(1)
    what = make(3, 4)
    function(WORKERS, what)
    with pytest.raises(KernelError):
        function(WORKERS, what._replace(**{name: spoil(getattr(what, name))}))


def test_wishes_for_more_blocks_than_have_an_interest_are_refused():
    with pytest.raises(KernelError, match=r"12 is outside 0\.\.9"):
        blend(WORKERS, torch.rand(1, H, BLOCKS), torch.rand(1, H, WIDTH), torch.tensor([True]), 0.5)
