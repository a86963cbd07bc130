"""The table of operations: every implementation of digests, scores and choices, against the plain ones in float64.

`columns.py` lists the implementations. Attention is in `test_ops_attention.py`, and what moves blocks in
`test_ops_pages.py`.
"""

import pytest
import torch

from scoutattention.kernels import reference
from scoutattention.kernels.requests import CodesRequest, InterestRequest, Preference, TopRequest
from scoutattention.runtime.packed import from_words
from scoutattention.types import GuardRequest

from .cases import of_closed
from .columns import EXACT, assert_factors, assert_main_dims, assert_near, assert_same, every_call, wide
from .sizes import (
    CHOICES,
    GARBAGE,
    SCORES,
    SIZES,
    chosen,
    masks,
    pages_of,
    positive_matrices,
    prompt_keys,
    queries,
    some_closed,
    split_request,
)

pytestmark = pytest.mark.usefixtures("poisoned")
every_choice = pytest.mark.parametrize("sizes", CHOICES, ids=str)


@every_call(SIZES, SIZES[2:3])
def test_digests_made(column, sizes, dtype):
    s = sizes
    k, pages = prompt_keys(s, dtype), torch.randperm(s.S)[: s.N]
    want = torch.full((s.S, s.H, 2 * s.D), 7.0)
    got = column.put(want)
    column.ops.write_min_max(column.put(k), got, column.put(pages))
    reference.write_min_max(k, want, pages)
    assert torch.equal(column.back(got), want)


@every_call(SIZES, SIZES[2:3])
@pytest.mark.parametrize("basis", ["none", "one", "each", "first"])
def test_key_codes_made(column, sizes, dtype, basis):
    s = sizes
    kept = s.D - s.D // 3 if basis == "first" else s.D
    k, pages = prompt_keys(s, dtype), torch.randperm(s.S)[: s.N]
    k[0, 0, :, 0] = 0.25  # a channel that does not change
    want = torch.full((s.S, s.H, -(-kept // 16), s.P, 4), 7, dtype=torch.uint8), torch.ones(s.S, s.H, 2, kept).half()
    got = column.put(want)
    each = torch.arange(len(k)) % 3
    which = {"none": None, "one": torch.tensor([2]), "each": each, "first": each}[basis]
    parts = None if which is None else (torch.randn(3, s.H, kept, s.D), which)
    column.ops.write_key_codes(CodesRequest(column.put(k), column.put(parts), *got, column.put(pages)))
    reference.write_key_codes(CodesRequest(k, parts, *want, pages))
    (words, bounds), (want_words, want_bounds) = column.back(got), want
    rounded = column.compiled or which is not None
    torch.testing.assert_close(bounds, want_bounds, rtol=1e-3 * rounded, atol=1e-3 * (which is not None))
    apart = from_words(words, 2, kept).int() - from_words(want_words, 2, kept).int()
    assert apart.abs().max() <= 1
    assert (apart != 0).float().mean() < 1e-3, "only keys halfway between two codes"
    padding = from_words(words[pages], 2, -(-kept // 16) * 16)[..., kept:]
    assert not padding.any()


@every_call(SIZES, [])
def test_main_dims(column, sizes, dtype):
    """The directions are orthogonal, and the strongest come first."""
    s = sizes
    turn = torch.linalg.qr(torch.randn(s.H, s.D, s.D)).Q
    keys = torch.randn(s.H, 4 * s.D, s.D) * torch.logspace(0, -2, s.D) @ turn
    moments = keys.mT @ keys
    assert_main_dims(column.call("main_dims", moments), moments)


@pytest.mark.parametrize(("D", "scale"), [(5, 0.0), (130, 1.0), (16, 1e-18), (16, 1e12)])
def test_main_dims_of_nothing_and_of_more_channels_than_a_program_holds(column, D, scale):
    keys = torch.randn(2, 4 * D, D)
    got = column.call("main_dims", keys.mT @ keys * scale)
    torch.testing.assert_close(got @ got.mT, torch.eye(D).expand(2, -1, -1), rtol=0, atol=5e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [1, 20, 64, 70, 128, 150])
def test_factors(column, m, dtype):
    """Of blocks of larger matrices, too, and of nearly dependent rows."""
    larger = positive_matrices(2, m + 3, 3.0).to(dtype)
    for matrices in (larger, larger[:, 3:, 3:]):
        got = column.call("factors", matrices)
        assert_factors(got, matrices)


@every_call(SIZES, SIZES[2:3])
def test_projected_queries(column, sizes, dtype):
    """By the first rows of matrices, as they lie in larger ones."""
    s = sizes
    q, bases = queries(s, dtype), torch.randn(s.B + 1, s.H, s.D, s.D)[1:]
    for rows in (s.D, 1 + s.D // 3):
        got = column.call("project", q, bases[:, :, :rows])
        assert got.dtype == torch.float32
        assert_near(got, EXACT.project(*wide((q, bases[:, :, :rows]))), 1e-5 if not column.on_gpu else 1e-3)


@every_call(SCORES, SCORES[-3:], work=lambda s: s.B * s.H * s.NB)
def test_digest_scores(column, sizes, dtype):
    s = sizes
    q, digests, closed = queries(s, dtype), reference.min_max(torch.randn(s.S, s.H, s.P, s.D)), some_closed(s)
    for pages in lists_of(s, closed):
        got = column.call("score_min_max", q, digests, pages, closed, 0.3)
        want = EXACT.score_min_max(*wide((q, digests)), pages, closed, 0.3)
        got, want = (of_closed(scores, closed) for scores in (got, want))
        if dtype == torch.float32:
            assert_same([got], [want], 1e-4)
        assert_near(got, want, 1e-5 if dtype == torch.float32 else 1e-2)


def lists_of(s, closed):
    """Pages of each KV head, and one list for all of them as an expanded view; garbage for blocks that are none."""
    pages = pages_of(s).masked_fill(torch.arange(s.NB) >= closed[:, None, None], GARBAGE)
    return pages, pages[:, :1].expand(-1, s.H, -1)


@every_call(SCORES, SCORES[-3:], work=lambda s: s.B * s.H * s.NB)
def test_key_code_scores(column, sizes, dtype):
    """The native kernel rounds products to 8 bits."""
    s = sizes
    q, closed = queries(s, dtype), some_closed(s)
    codes, bounds = reference.key_codes(torch.randn(s.S, s.H, s.P, s.D))
    for pages in lists_of(s, closed):
        got = column.call("score_key_codes", q, codes, bounds, pages, closed, s.D**-0.5)
        want = EXACT.score_key_codes(q.double(), codes, bounds, pages, closed, s.D**-0.5)
        got, want = (of_closed(scores, closed) for scores in (got, want))
        if dtype == torch.float32 and not column.compiled:
            assert_same([got], [want], 0.05 if column.name == "native" else 1e-4)
        assert_near(got, want, 1e-2 if column.name == "native" or dtype != torch.float32 else 1e-3)


@every_call(SCORES, (), work=lambda s: s.B * s.H * s.NB)
def test_top_blocks_by_key_codes(column, sizes, dtype):
    """The result is that of the single operations of the same implementation."""
    s = sizes
    q, closed, how = queries(s, dtype), some_closed(s), Preference(min(s.N, s.NB), (1, 2), largest=False)
    codes, bounds = reference.key_codes(torch.randn(s.S, s.H, s.P, s.D))
    for basis in (None, torch.randn(s.B, s.H, s.D, s.D)[:, :, : s.D // 2]):
        dims = s.D if basis is None else basis.shape[2]
        first = codes[:, :, : -(-dims // 16)], bounds[..., :dims]
        for pages in lists_of(s, closed):
            what = column.put(TopRequest(q, basis, *first, pages, closed, s.D**-0.5, how))
            got = column.back(column.ops.top_by_key_codes(what))
            keys = what.q if basis is None else column.ops.project(what.q, what.basis)
            scores = column.ops.score_key_codes(keys, *what[2:7])
            want = column.back(column.ops.top_blocks(scores, what.closed, how.chosen, how.always, largest=how.largest))
            there = want.blocks < closed[:, None, None]
            assert torch.equal(got.blocks.where(there, 0), want.blocks.where(there, 0))
            assert_near(got.wishes, want.wishes, 1e-6)
            assert_near(got.all_wishes, want.all_wishes, 1e-6)


@pytest.mark.parametrize("largest", [False, True])
@every_choice
def test_top_blocks(column, sizes, largest):
    s = sizes
    scores, closed = 4 * torch.randn(s.B, s.H, s.G, s.NB), torch.randint(0, s.NB + 1, (s.B,))
    closed[-1], always = s.NB, (1, 2)
    got = column.call("top_blocks", scores, closed, s.N, always, largest=largest)
    want = EXACT.top_blocks(scores.double(), closed, s.N, always, largest=largest)
    assert_same([got.all_wishes], [want.all_wishes])
    assert_near(got.all_wishes, want.all_wishes, 1e-4 if column.compiled else 1e-5)
    assert torch.equal(got.wishes, got.all_wishes.gather(-1, got.blocks))
    assert (got.blocks.sort(-1).values.diff() > 0).all(), "no block twice"
    end = closed[:, None, None]
    there = want.blocks < end
    assert torch.equal(got.blocks < end, there)
    order = [side.blocks.where(there, s.NB) for side in (got, want)]
    assert torch.equal(*(blocks.sort(-1).values for blocks in order))
    first = (want.blocks < always[0]) | (want.blocks >= end - always[1])
    if not column.on_gpu:  # the order of blocks that are chosen always is that of float32 wishes
        plain = EXACT.top_blocks(scores, closed, s.N, always, largest=largest)
        assert torch.equal(got.blocks[there], plain.blocks[there])
    assert torch.equal(order[0].where(~first, 0), order[1].where(~first, 0))


@pytest.mark.parametrize("largest", [False, True])
@every_choice
def test_sink_and_recent_blocks_come_first_whatever_the_scores(column, sizes, largest):
    s = sizes
    closed = torch.full((s.B,), s.NB)
    scores = torch.full((s.B, s.H, s.G, s.NB), torch.nan)
    blocks = column.call("top_blocks", scores, closed, s.N, (1, 1), largest=largest).blocks
    for row in blocks.flatten(0, 1).tolist():
        assert {*row[:2]} == {*[0, s.NB - 1][: s.N]}
        assert len({*row}) == s.N


@every_choice
def test_split_choice(column, sizes):
    s = sizes
    for picks in (None, chosen(s)):
        some = split_request(s, picks)
        for what in (some, some._replace(rows=(masks(s.B) | True, masks(s.B) & False, torch.rand(s.B)))):
            there = column.put(what)
            got, want = column.back(column.ops.split_choice(there)), EXACT.split_choice(what)
            assert_same(got, want)
            assert torch.equal(column.back(there.counts), what.counts)


@every_choice
def test_a_split_that_notes(column, sizes):
    s = sizes
    what, before, rows = split_request(s, chosen(s)), torch.rand(s.B, s.H, s.NB + 4), masks(s.B)
    noting = InterestRequest(before.clone(), torch.rand(s.B, s.H, s.NB), rows, 0.8)
    there, note = column.put(what), column.put(noting)
    got, want = column.back(column.ops.split_and_note(there, note)), EXACT.split_and_note(what, noting)
    assert_same(got, want)
    assert torch.equal(column.back(there.counts), what.counts)
    assert_near(column.back(note.interest), noting.interest, 1e-6)
    assert torch.equal(noting.interest[~rows], before[~rows])


@every_choice
def test_updated_interest(column, sizes):
    s = sizes
    before, blocks, wishes, rows = torch.rand(s.B, s.H, s.NB + 4), chosen(s), torch.rand(s.B, s.H, s.N), masks(s.B)
    got, want = column.put(before), before.double()
    column.ops.update_interest(got, *column.put((blocks, wishes, rows)), 0.8)
    EXACT.update_interest(want, blocks, wishes.double(), rows, 0.8)
    assert_near(column.back(got), want, 1e-6)
    assert torch.equal(column.back(got)[~rows], before[~rows])


@every_choice
def test_late(column, sizes):
    s = sizes
    wanted, scouted = (chosen(s), masks(s.B, s.H, s.N), torch.rand(s.B, s.H, s.N)), (chosen(s), masks(s.B, s.H, s.N))
    error = torch.rand(s.B, s.H)
    error[0, 0] = torch.nan
    for rows, limit in ((masks(s.B), 0.7), (masks(s.B) | True, 0.7), (masks(s.B) | True, s.N / 16)):
        what = GuardRequest(wanted, scouted, error, rows, limit, torch.full((2, s.B, s.H), 7))
        there = column.put(what)
        got, want = column.back(column.ops.find_late(there)), EXACT.find_late(what)
        assert_same(got, want)
        assert torch.equal(column.back(there.counts), what.counts)
