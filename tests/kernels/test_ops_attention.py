"""Every implementation of partial attention and of what joins partials, against float64 on awkward shapes."""

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.kernels import reference
from scoutattention.runtime.packed import pack
from scoutattention.types import BlockList

from .columns import DTYPES, EXACT, assert_near, assert_same, every_call, wide
from .sizes import LISTS, MERGES, SIZES, Sizes, join_request, masks, partials, queries, scattered

ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""What a compiled kernel's outputs may be off by: its softmax weights are in the pool's dtype."""
FLOAT32 = 1e-5
"""What float32 may be off by: products of numbers in the pool's dtype are exact there, and only their sums are not."""
NATIVE, PACKED_PRODUCTS = 2e-2, 1e-4
"""What attention to packed pages may be off by: native kernels round to 8 bits, others to two parts of 16 bits."""
PACKED = [
    Sizes(B=b, H=h, G=g, D=d, P=p, N=n)
    for b, h, g, d, p, n in (
        (1, 1, 1, 64, 32, 1),
        (2, 2, 7, 80, 32, 9),
        (1, 1, 4, 128, 32, 21),
        (2, 3, 3, 64, 16, 13),
        (1, 2, 20, 24, 5, 11),
        (1, 2, 3, 64, 130, 3),
        (2, 2, 4, 64, 32, 0),
    )
]

PROMPTS = [(1, 1, 1, 1, 64), (5, 70, 2, 2, 7), (100, 300, 3, 3, 64), (65, 129, 2, 4, 128), (33, 64, 1, 7, 80)]
"""n, T, H, G, D."""

pytestmark = pytest.mark.usefixtures("poisoned")


def assert_partial(column, got, want, dtype: torch.dtype) -> None:
    """`got` is float32 and `want` float64."""
    assert got.out.dtype == got.lse.dtype == torch.float32
    assert_near(got.out, want.out, ROUNDING[dtype] if column.compiled else FLOAT32)
    assert_near(got.lse, want.lse, FLOAT32)


@every_call(LISTS, LISTS, work=lambda s: s.B * s.H * s.N)
def test_partial(column, sizes, dtype):
    s = sizes
    blocks, slots = scattered(s)
    q = queries(s, dtype)
    k, v = (torch.randn(slots, s.H, s.P, s.D).to(dtype) for _ in range(2))
    got = column.call("partial", q, k, v, blocks, s.D**-0.5)
    assert_partial(column, got, EXACT.partial(*wide((q, k, v)), blocks, s.D**-0.5), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "T", "H", "G", "D"), PROMPTS)
def test_the_attention_of_a_prompt(column, n, T, H, G, D, dtype):
    q, k, v = (torch.randn(size).to(dtype) for size in ((n, H, G, D), (T, H, D), (T, H, D)))
    got, want = column.call("causal", q, k, v, 2 * D**-0.5), EXACT.causal(*wide((q, k, v)), 2 * D**-0.5)
    assert got.dtype == dtype
    assert_near(got.double(), want, ROUNDING[dtype])


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_partial_over_lists_of_each_head(column, sizes):
    s = sizes
    q, (k, v) = queries(s), torch.randn(2, s.S, s.H, s.P, s.D)
    blocks = BlockList(torch.randint(0, s.S, (s.B, s.H, s.N)).int(), torch.randint(0, s.P + 1, (s.B, s.H, s.N)).int())
    got = column.call("partial", q, k, v, blocks, 0.2)
    assert_partial(column, got, EXACT.partial(*wide((q, k, v)), blocks, 0.2), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("on_host", [False, True], ids=["on the device", "on the host"])
def test_partial_over_one_layer_of_a_larger_pool(column, on_host, dtype):
    s = Sizes()
    blocks, slots = scattered(s)
    q, pools = queries(s, dtype), torch.randn(2, 3, slots, s.H, s.P, s.D).to(dtype)
    there = column.put_on_host(pools) if on_host else column.put(pools)
    got = column.ops.partial(column.put(q), there[0, 1], there[1, 1], column.put(blocks), 0.2)
    assert_partial(column, column.back(got), EXACT.partial(*wide((q, *pools[:, 1])), blocks, 0.2), dtype)


@pytest.mark.parametrize("bits", [8, 4])
@every_call(PACKED, PACKED[1:2], work=lambda s: s.B * s.H * s.N)
def test_partial_of_packed_pages(column, sizes, dtype, bits):
    s = sizes
    blocks, slots = scattered(s)
    q, rows = queries(s, dtype), torch.randn(2, slots, s.H, s.P, s.D)
    pools = pack(rows[0], bits, by_token=False), pack(rows[1], bits, by_token=True)
    got = column.back(column.ops.partial(column.put(q), *column.put_on_host(pools), column.put(blocks), s.D**-0.5))
    assert got.out.dtype == got.lse.dtype == torch.float32
    want = EXACT.partial(q.double(), *(pool.to(torch.float64) for pool in pools), blocks, s.D**-0.5)
    limit = NATIVE if column.name == "native" else PACKED_PRODUCTS if column.compiled else FLOAT32
    assert_near(got.out, want.out, limit)
    assert_near(got.lse, want.lse, limit)


@pytest.mark.parametrize("bits", [0, 8, 4])
@pytest.mark.parametrize("of_keys", [True, False], ids=["key", "value"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_hidden(column, bits, of_keys, bad):
    """One number of a head's block, in blocks that are packed or not."""
    s = Sizes(B=1, H=2, N=3)
    blocks = BlockList(torch.arange(3).int().expand(1, 2, 3), torch.full((1, 2, 3), s.P).int())
    q, rows = queries(s).abs(), torch.randn(2, 3, s.H, s.P, s.D)
    rows[0 if of_keys else 1, 1, 1, 2, 3] = abs(bad) if not bits else bad  # a score of -inf is a weight of 0
    pools = tuple(
        pack(part, bits, by_token=values) if bits else part for part, values in zip(rows, (False, True), strict=True)
    )
    got = column.back(column.ops.partial(column.put(q), *column.put_on_host(pools), column.put(blocks), 0.2)).out
    assert got[0, 0].isfinite().all()
    spoilt = got[0, 1] if of_keys else got[0, 1, :, 3]
    assert not spoilt.isfinite().any()


def test_one_packed_pool_alone_is_refused(column):
    s = Sizes()
    rows, blocks = torch.randn(s.S, s.H, s.P, s.D), BlockList(*torch.zeros(2, s.B, s.H, 1, dtype=torch.int32))
    pools = pack(rows, 8, by_token=False), rows
    if not column.name.startswith("plain"):
        with pytest.raises(KernelError, match="one of k and v is packed"):
            column.ops.partial(column.put(queries(s)), *column.put_on_host(pools), column.put(blocks), 0.2)


@every_call(MERGES, MERGES[-1:])
def test_correction_and_merge(column, sizes, dtype):
    near, far = partials(sizes)
    q = queries(sizes, dtype)
    q_hat = (q.float() + 0.1 * queries(sizes)).to(dtype)
    got = column.call("corrected", far, q, q_hat, 0.2)
    want = EXACT.corrected(wide(far), *wide((q, q_hat)), 0.2)
    assert_near(got.lse, want.lse, FLOAT32)
    assert torch.equal(got.out, far.out)
    assert torch.equal(got.mean_key, far.mean_key)
    merged, exact = column.call("merge", near, got), EXACT.merge(wide(near), wide(got))
    assert_same(merged[:2], exact[:2])
    assert_near(merged.out, exact.out, FLOAT32)
    assert_near(merged.lse, exact.lse, FLOAT32)


@pytest.mark.parametrize("sizes", MERGES, ids=str)
def test_a_merge_without_some_heads(column, sizes):
    a, b = partials(sizes)
    without = masks(sizes.B, sizes.H)
    without[-1, -1] = True
    a.out[-1, -1], a.lse[-1, -1, -1] = torch.nan, torch.nan
    got, want = column.call("merge", a, b, without)[:2], EXACT.merge(wide(a), wide(b), without)[:2]
    assert_same(got, want)
    assert torch.equal(got[0][-1, -1], b.out[-1, -1])


@every_call(MERGES, MERGES[-1:])
def test_scout_error(column, sizes, dtype):
    near, far = (side._replace(lse=5 * torch.randn(side.lse.shape)) for side in partials(sizes))
    far.lse[-1, -1] = -torch.inf
    q = queries(sizes, dtype)
    q_hat = (q.float() + 0.3 * queries(sizes)).to(dtype)
    got = column.call("scout_error", far, near, q, q_hat)
    want = reference.scout_error(wide(far), wide(near), q.float(), q_hat.float())
    subtracted_in_half = column.name.startswith("plain") and dtype != torch.float32
    assert_same([got], [want], 5e-3 if subtracted_in_half else 1e-4 if column.compiled else FLOAT32)
    q_hat[0, 0, 0, 0] = torch.nan
    got = column.call("scout_error", far, near, q, q_hat)
    assert got[0, 0].isnan(), "what is no number is not small"


@pytest.mark.parametrize("limit", [0.05, 0.7])
@every_call(MERGES, MERGES[-1:])
def test_join(column, sizes, dtype, limit):
    """A scout's part that is spoilt in some KV heads and has missed blocks in others."""
    what = join_request(sizes, dtype, limit)
    there = column.put(what)
    far, pool = column.put_on_host((what.far, what.guard.pool))
    got = column.back(column.ops.join(there._replace(far=far, guard=there.guard._replace(pool=pool))))
    exact = wide(what)
    want = EXACT.join(exact)
    assert torch.equal(column.back(there.guard.counts), exact.guard.counts)
    assert got.out.dtype == dtype
    assert_near(got.out, want.out, FLOAT32 if dtype == torch.float32 else ROUNDING[torch.bfloat16])
    assert_near(got.lse, want.lse, FLOAT32 if dtype == torch.float32 else 1e-3)


def test_some_heads_are_joined_late():
    what = wide(join_request(MERGES[-1], torch.float32, 0.7))
    EXACT.join(what)
    found, late = what.guard.counts
    assert 0 < (found > 0).sum() < found.numel()
    assert late.any()


@pytest.mark.parametrize("corrects", [False, True])
def test_join_without_a_guard(column, corrects):
    what = join_request(MERGES[0], torch.float32, 1.0)._replace(guard=None)
    if not corrects:
        what = what._replace(scout=None, far=what.far._replace(mean_key=None))
    got, want = column.call("join", what), EXACT.join(wide(what))
    assert_near(got.out, want.out, FLOAT32)
    assert_near(got.lse, want.lse, FLOAT32)
