"""Keys in 2 bits a channel: what is kept of them, and the native scores against the plain ones."""

import pytest
import torch
from torch import Tensor

from scoutattention.errors import KernelError
from scoutattention.kernels import reference
from scoutattention.kernels.native import NativeOps
from scoutattention.kernels.requests import CodesRequest
from scoutattention.runtime import workers as cpu
from scoutattention.runtime.packed import from_codes, from_words

from .cases import scorer


@pytest.fixture(scope="module", params=cpu.isa_levels())
def workers(request):
    with cpu.Workers(2, isa=request.param) as workers:
        yield workers


def make_layer(S: int, H: int, P: int, D: int) -> tuple[Tensor, Tensor]:
    """Any codes, in padding too, and bounds whose step is 1 / 512; one layer of two that are kept together."""
    codes = torch.randint(0, 256, (S, 2, H, -(-D // 16), P, 4), dtype=torch.uint8)
    bounds = torch.stack([torch.randn(S, 2, H, D), torch.full((S, 2, H, D), 2.0**-9)], dim=-2).half()
    return codes[:, 1], bounds[:, 1]


def make_whole_queries(B: int, H: int, G: int, D: int) -> Tensor:
    """Queries of whole numbers, 127 among them: with equal steps, rounding to 8 bits changes nothing."""
    q = torch.randint(-127, 128, (B, H, G, D)).float()
    q[..., 0] = 127
    return q


def make_pages(S: int, B: int, H: int, N: int) -> Tensor:
    """[B, H, N], rows further apart than N."""
    return torch.randint(0, S, (B, H, N + 1), dtype=torch.int32)[..., :N]


@pytest.mark.parametrize("P", [1, 4, 16, 32, 37, 75])
@pytest.mark.parametrize(("G", "D"), [(1, 64), (3, 80), (7, 128), (5, 24), (2, 7)])
def test_scores_without_rounding_are_the_reference(workers, G, D, P):
    torch.manual_seed(0)
    codes, bounds = make_layer(40, 3, P, D)
    q = make_whole_queries(2, 3, G, D)
    for N in (0, 1, 15, 16, 17, 53):
        pages = make_pages(40, 2, 3, N)
        want = reference.score_key_codes(q, codes, bounds, pages)
        got = scorer(workers, "score_key_codes")(q, codes, bounds, pages=pages)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-3 if D > 100 else 1e-3)


def test_scores_of_lists_that_are_split_over_tasks(workers):
    torch.manual_seed(0)
    codes, bounds = make_layer(700, 2, 32, 64)
    q, pages = make_whole_queries(3, 2, 3, 64), make_pages(700, 3, 2, 1001)
    want = reference.score_key_codes(q, codes, bounds, pages)
    torch.testing.assert_close(
        scorer(workers, "score_key_codes")(q, codes, bounds, pages=pages), want, rtol=1e-5, atol=1e-3
    )


def test_one_list_of_pages_for_all_sequences_and_heads(workers):
    torch.manual_seed(0)
    codes, bounds = make_layer(20, 2, 8, 64)
    q, pages = make_whole_queries(3, 2, 3, 64), make_pages(20, 1, 1, 20).expand(3, 2, -1)
    want = reference.score_key_codes(q, codes, bounds, pages)
    torch.testing.assert_close(
        scorer(workers, "score_key_codes")(q, codes, bounds, pages=pages), want, rtol=1e-5, atol=1e-3
    )


def test_only_the_closed_blocks_of_a_sequence_are_scored_and_looked_at(workers):
    torch.manual_seed(0)
    codes, bounds = make_layer(700, 2, 8, 64)
    q, pages, closed = make_whole_queries(4, 2, 3, 64), make_pages(700, 4, 2, 900), torch.tensor([900, 0, 33, 1])
    want = reference.score_key_codes(q, codes, bounds, pages)
    there = torch.arange(900) < closed[:, None, None]
    for listed in (pages.where(there, -1), pages[:, :1].where(there, 700).expand(-1, 2, -1)):
        got = scorer(workers, "score_key_codes")(q, codes, bounds, pages=listed, closed=closed)
        if listed.stride(1) == 0:
            want = reference.score_key_codes(q, codes, bounds, listed.clamp(max=699))
        for row, count in enumerate(closed.tolist()):
            torch.testing.assert_close(got[row, ..., :count], want[row, ..., :count], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("loud", [1.0, 30.0], ids=["channels alike", "one loud channel"])
def test_rounding_the_query_costs_far_less_than_two_bits_do(workers, loud):
    """Against the plain scores of the same codes; the codes' own error is that of plain scores of the keys."""
    torch.manual_seed(0)
    k, q, pages = torch.randn(512, 2, 32, 64), torch.randn(2, 2, 3, 64) / 4, torch.arange(512).int().expand(2, 2, -1)
    k[..., 5] *= loud
    codes, bounds = reference.key_codes(k)
    want = reference.score_key_codes(q, codes, bounds, pages)
    got = scorer(workers, "score_key_codes")(q, codes, bounds, pages=pages)
    steps = (q[:, :, :, None] * bounds[:, :, 1].float().transpose(0, 1)[None, :, None]).abs()  # [B, H, G, S, D]
    error = got - want
    assert (error.abs() <= 1.5 * 0.5 / 127 * 64 * steps.amax(-1) + 1e-4).all(), "1.5 codes off by half of one of 127"
    assert error.std() < (want - reference.score_exactly(q, k, pages)).std() / 6
    kept = got.topk(64).indices[..., None] == want.topk(64).indices[..., None, :]
    assert kept.any(-1).float().mean() > 0.96


@pytest.mark.parametrize("spread", [2.0**-9, 2.0**-3, 1.0])
def test_logarithms_of_sums_are_within_a_ten_thousandth(workers, spread):
    """Keys of alike scores, of scores a few apart, and with one far above the rest: powers are good to 1.1e-4."""
    torch.manual_seed(0)
    codes, bounds = make_layer(200, 1, 32, 64)
    q, pages = make_whole_queries(1, 1, 4, 64) * spread, torch.arange(200).int()[None, None]
    bounds[:, :, 0] = 0
    want = reference.score_key_codes(q, codes, bounds, pages)
    torch.testing.assert_close(
        scorer(workers, "score_key_codes")(q, codes, bounds, pages=pages), want, rtol=2e-6, atol=1.3e-4
    )


@pytest.mark.parametrize("q_scale", [0.0, 1e-20, 1e4])
def test_queries_of_any_size(workers, q_scale):
    torch.manual_seed(0)
    k, q, pages = (
        torch.randn(20, 2, 32, 64),
        torch.randn(1, 2, 3, 64) * q_scale,
        torch.arange(20).int().expand(1, 2, -1),
    )
    codes, bounds = reference.key_codes(k)
    want = reference.score_key_codes(q, codes, bounds, pages)
    torch.testing.assert_close(
        scorer(workers, "score_key_codes")(q, codes, bounds, pages=pages), want, rtol=1e-5, atol=0.3 * q_scale + 1e-5
    )


def test_keys_that_are_all_the_same_are_scored_exactly(workers):
    torch.manual_seed(0)
    k = torch.randn(20, 2, 1, 64).half().float().expand(-1, -1, 32, -1)
    q, pages = torch.randn(1, 2, 3, 64), torch.arange(20).int().expand(1, 2, -1)
    got = scorer(workers, "score_key_codes")(q, *reference.key_codes(k), pages=pages)
    torch.testing.assert_close(got, reference.score_exactly(q, k, pages), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_queries_of_any_float_dtype_and_stride(workers, dtype):
    torch.manual_seed(0)
    codes, bounds = make_layer(9, 2, 8, 64)
    q = make_whole_queries(1, 3, 2, 64).to(dtype).transpose(1, 2)
    pages = make_pages(9, 1, 2, 9)
    want = scorer(workers, "score_key_codes")(q.float().contiguous(), codes, bounds, pages=pages)
    assert torch.equal(scorer(workers, "score_key_codes")(q, codes, bounds, pages=pages), want)


def test_bad_arguments_are_named(workers):
    codes, bounds = reference.key_codes(torch.randn(5, 2, 8, 64))
    q, pages = torch.randn(1, 2, 3, 64), torch.zeros(1, 2, 4, dtype=torch.int32)
    for changed, message in [
        ({"codes": codes.int()}, "codes is torch.int32"),
        ({"codes": codes[..., :3]}, r"\[5, 2, 4, 8, 3\]: it must be \[S, 2, 4, 8, 4\]"),
        ({"codes": codes[:, :, :3]}, r"\[5, 2, 3, 8, 4\]"),
        ({"codes": codes[:, :, :, :0]}, r"\[S, 2, 4, 1, 4\]"),
        ({"codes": codes[0]}, r"\[2, 4, 8, 4\]"),
        ({"codes": codes.transpose(2, 3).contiguous().transpose(2, 3)}, "codes has strides"),
        ({"bounds": bounds.bfloat16()}, "bounds is torch.bfloat16"),
        ({"bounds": bounds[:, :, :1]}, r"\[5, 2, 1, 64\]"),
        ({"bounds": bounds[:4]}, "codes have 5 pages and bounds 4"),
        ({"pages": pages.long()}, "int64"),
        ({"pages": pages[:, 0]}, r"\[1, 4\]: it must be \[B, H, N\]"),
        ({"pages": pages.repeat(1, 1, 2)[..., ::2]}, "strides"),
        ({"closed": torch.tensor([5])}, r"closed blocks 5 is outside 0\.\.4"),
        ({"closed": torch.tensor([-1])}, "-1 is outside"),
        ({"closed": torch.tensor([4, 4])}, r"closed is torch.int64 \[2\]"),
        ({"closed": torch.tensor([4]).int()}, "closed is torch.int32"),
        ({"pages": pages + 5}, r"5 is outside 0\.\.4"),
        ({"pages": pages - 1}, "-1 is outside"),
        ({"q": q.to("meta")}, "meta"),
        ({"q": q[:, :, :0]}, r"\[1, 2, 0, 64\]"),
        ({"q": q[0]}, r"\[2, 3, 64\]"),
    ]:
        with pytest.raises(KernelError, match=message):
            scorer(workers, "score_key_codes")(**({"q": q, "codes": codes, "bounds": bounds, "pages": pages} | changed))


def test_a_code_stands_where_the_layout_says():
    """Channel 16 w + 4 j + i of key p is in bits 2 j and 2 j + 1 of codes[w, p, i]."""
    for d in (0, 1, 4, 17, 39):
        k = torch.zeros(3, 40)
        k[1, d] = 3.0
        codes, bounds = reference.key_codes(k)
        assert codes.shape == (3, 3, 4)
        w, j, i = d // 16, d % 16 // 4, d % 4
        assert codes.nonzero().tolist() == [[w, 1, i]]
        assert codes[w, 1, i] == 3 << 2 * j
        assert bounds[1].nonzero().tolist() == [[d]]


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_kept_keys_are_within_half_a_step(offset):
    """Asked of the scores of unit queries, for blocks of one key out of many that share bounds."""
    torch.manual_seed(0)
    k = torch.randn(2, 32, 40) + offset
    codes, bounds = reference.key_codes(k)
    unit, first = torch.eye(40).expand(1, 2, 40, 40), torch.zeros(1, 2, 1, dtype=torch.int32)
    half_step = bounds[:, 1].float() / 2 + offset * 2.0**-10  # and what float16 rounds of the least value
    for p in range(32):
        kept = reference.score_key_codes(unit, codes[None, :, :, p : p + 1], bounds[None], first)[0, ..., 0]
        assert ((kept - k[:, p]).abs() <= half_step + 1e-3).all()


def test_scores_of_keys_that_two_bits_hold_are_exact():
    torch.manual_seed(0)
    k = torch.randint(0, 4, (6, 2, 32, 64)) * 0.5 - 0.25
    k[:, :, 0], k[:, :, 1] = -0.25, 1.25
    q, pages = torch.randn(2, 2, 3, 64), torch.randint(0, 6, (2, 2, 9)).int()
    got = reference.score_key_codes(q, *reference.key_codes(k), pages)
    torch.testing.assert_close(got, reference.score_exactly(q, k, pages))
    want = torch.einsum("bhgd,bhnpd->bhgnp", q, k[pages.long(), torch.arange(2)[:, None]]).logsumexp(-1)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("D", [40, 64])
def test_no_blocks_have_no_codes(D):
    codes, bounds = reference.key_codes(torch.zeros(0, 2, 8, D))
    assert codes.shape == (0, 2, -(-D // 16), 8, 4)
    assert bounds.shape == (0, 2, 2, D)


@pytest.mark.parametrize("P", [1, 4, 16, 32, 37])
@pytest.mark.parametrize("D", [7, 16, 24, 64, 80, 128])
def test_written_codes_are_the_reference(workers, D, P):
    """Bit for bit, of keys of any size, in memory of any strides; a channel without numbers too."""
    torch.manual_seed(0)
    k = (torch.randn(9, P, 2, D) * torch.tensor(10.0) ** torch.randint(-9, 6, (9, 1, 2, 1))).transpose(1, 2)
    for place, number in enumerate((torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e-40)):
        k[place, 1, -1, D // 2] = number
    k[8, 0, :, 3] = 0.25
    codes, bounds = make_layer(12, 2, P, D)
    want, got = ((codes.clone(), bounds.clone()) for _ in range(2))
    reference.write_key_codes(CodesRequest(k, None, *want, torch.arange(9) + 2))
    NativeOps(workers).write_key_codes(CodesRequest(k, None, *got, torch.arange(9) + 2))
    assert torch.equal(got[0], want[0])
    torch.testing.assert_close(got[1], want[1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("which", [[2], [0, 2, 1, 0, 2, 2, 1]], ids=["one basis", "each its own"])
def test_codes_written_in_a_basis_are_near_its_products(workers, which):
    torch.manual_seed(0)
    k, basis, pages = torch.randn(7, 2, 32, 80), torch.randn(3, 2, 80, 80), torch.randperm(9)[:7]
    codes, bounds = reference.key_codes(torch.zeros(9, 2, 32, 80))
    NativeOps(workers).write_key_codes(CodesRequest(k, (basis, torch.tensor(which)), codes, bounds, pages))
    main = k @ basis[torch.tensor(which).expand(7)].mT
    kept = from_codes(from_words(codes[pages], 2, 80), bounds[pages])
    half_step = (main.amax(2) - main.amin(2))[:, :, None] / 6
    assert ((kept - main).abs() <= half_step + 0.02 + main.abs() / 256).all()


def test_what_cannot_be_written_is_refused(workers):
    k, pages, (codes, bounds) = (
        torch.randn(2, 2, 8, 16),
        torch.tensor([4, 1]),
        reference.key_codes(torch.zeros(5, 2, 8, 16)),
    )
    basis = torch.randn(3, 2, 16, 16)
    for changed, message in [
        ({"pages": torch.tensor([4, 4])}, "page 4 is given twice"),
        ({"pages": torch.tensor([5, 1])}, "page 5 is outside 0..4"),
        ({"basis": (basis, torch.tensor([0, 3]))}, "basis 3 is outside 0..2"),
        ({"basis": (basis[..., :8], torch.tensor([0]))}, "basis"),
        ({"k": k[:, :, :4]}, r"codes \[5, 2, 1, 8, 4\]"),
        ({"k": k.transpose(2, 3)}, "channels contiguous"),
    ]:
        what = CodesRequest(k, None, codes, bounds, pages)._replace(**changed)
        with pytest.raises(KernelError, match=message):
            NativeOps(workers).write_key_codes(what)
