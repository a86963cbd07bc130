"""Blocks in a few bits a channel: what is kept of them, and native attention to them against the plain one."""

import pytest
import torch
from torch import Tensor

from scoutattention.errors import KernelError
from scoutattention.kernels import reference
from scoutattention.runtime import workers as cpu
from scoutattention.runtime.packed import Packed, empty_packed, from_words, pack, to_words
from scoutattention.types import BlockList, Partial

from ..kernels.cases import CASES, Call, Case, assert_close, make_call

TOP = {8: 255, 4: 15}
WHOLE = 127 * 256
"""The largest product of a query and a step; those that are whole parts of it are kept as they are."""


@pytest.fixture(scope="module", params=cpu.isa_levels())
def workers(request):
    with cpu.Workers(2, isa=request.param) as workers:
        yield workers


def packed_call(case: Case, bits: int) -> tuple[Call, Packed, Packed]:
    call = make_call(case, torch.float32)
    return call, pack(call.k, bits, by_token=False), pack(call.v, bits, by_token=True)


def plain(call: Call, k: Packed, v: Packed) -> Partial:
    return reference.partial(call.q.double(), k, v, call.blocks, call.scale, with_mean_key=True)


def distance(got: Tensor, want: Tensor) -> float:
    """The difference's root mean square."""
    return float((got - want).double().square().mean().sqrt()) if want.numel() else 0.0


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("case", [case for case in CASES if case.q_scale <= 1], ids=lambda case: case.name)
def test_rounding_costs_a_tenth_of_what_packing_does(workers, case, bits):
    """Against the plain kernel over the same codes; the codes' own error is that of the plain kernel over them."""
    call, k, v = packed_call(case, bits)
    got = workers.partial(call.q, k, v, call.blocks, call.scale, with_mean_key=True)
    want = plain(call, k, v)
    exact = reference.partial(call.q.double(), call.k, call.v, call.blocks, call.scale, with_mean_key=True)
    assert torch.equal(got.lse.isinf(), want.lse.isinf())
    there = ~want.lse.isinf()
    assert distance(got.lse[there], want.lse[there]) <= 0.1 * distance(want.lse[there], exact.lse[there]) + 1e-5
    for mine, plain_one, true in ((got.out, want.out, exact.out), (got.mean_key, want.mean_key, exact.mean_key)):
        assert distance(mine, plain_one) <= 0.1 * distance(plain_one, true) + 1e-5


@pytest.mark.parametrize("bits", [8, 4])
def test_large_scores_stay_finite_and_near(workers, bits):
    call, k, v = packed_call(next(case for case in CASES if case.q_scale > 1), bits)
    got, want = workers.partial(call.q, k, v, call.blocks, call.scale), plain(call, k, v)
    assert got.out.isfinite().all()
    torch.testing.assert_close(got.lse.double(), want.lse, rtol=1e-4 if bits == 8 else 1e-2, atol=0)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("G", "D", "P"), [(1, 64, 32), (3, 80, 32), (8, 128, 32), (5, 24, 37), (2, 7, 1), (4, 64, 16)])
def test_products_of_whole_numbers_are_exact(workers, G, D, P, bits):
    """One key of each page: any codes, in padding too, and equal steps; one layer of two."""
    torch.manual_seed(0)
    H, S = 2, 12
    q = torch.randint(-WHOLE, WHOLE + 1, (1, H, G, D)).float()
    q[..., 0] = WHOLE
    k, v = (empty_packed((2, S, H, P, D), bits, by_token=by_token) for by_token in (False, True))
    for blocks in (k, v):
        blocks.words.random_(0, 256)
        blocks.bounds[..., 0, :], blocks.bounds[..., 1, :] = 0, 2.0**-9
    index = torch.randperm(S)[None, None].expand(1, H, S).int()
    length = torch.ones(1, H, S, dtype=torch.int32)
    call = Call(q, k.words, v.words, BlockList(index, length), 1 / WHOLE)
    got = workers.partial(q, k[1], v[1], call.blocks, call.scale, with_mean_key=True)
    assert_close(got, plain(call, k[1], v[1]), 30.0)


@pytest.mark.parametrize("bits", [8, 4])
def test_equal_weights_give_the_mean(workers, bits):
    call, k, v = packed_call(Case("equal", G=7, D=80, N=20, lengths=(32, 5, 0, 17), q_scale=0.0), bits)
    got = workers.partial(call.q, k, v, call.blocks, call.scale, with_mean_key=True)
    assert_close(got, plain(call, k, v), 10.0)


@pytest.mark.parametrize("by_token", [False, True], ids=["by channel", "by token"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("P", "D"), [(32, 64), (5, 7), (1, 24), (37, 80)])
def test_kept_rows_are_within_half_a_step(P, D, bits, by_token):
    torch.manual_seed(0)
    blocks = torch.randn(3, 2, P, D) + 5 * torch.randn(D)
    packed = pack(blocks, bits, by_token=by_token)
    half_step = (blocks.amax(-2) - blocks.amin(-2)) / TOP[bits] / 2
    allowed = (half_step * 1.01 + blocks.abs().amax(-2) * 2.0**-10)[..., None, :]  # and what float16 rounds
    assert packed.shape == blocks.shape
    assert ((packed.float() - blocks).abs() <= allowed).all()
    assert packed.to(torch.bfloat16).dtype == torch.bfloat16


def test_a_code_stands_where_the_layout_says():
    """Code n w + 4 j + i of row r is in `bits` bits from bit `bits * j` of words[w, r, i]."""
    for bits in (2, 4, 8):
        n = 32 // bits
        for at in (0, 1, 4, n - 1, n, 2 * n + 1):
            codes = torch.zeros(3, 2 * n + 2, dtype=torch.uint8)
            codes[1, at] = 2**bits - 1
            words = to_words(codes, bits)
            w, j, i = at // n, at % n // 4, at % 4
            assert words.nonzero().tolist() == [[w, 1, i]]
            assert words[w, 1, i] == (2**bits - 1) << bits * j
            assert torch.equal(from_words(words, bits, 2 * n + 2), codes)


def test_blocks_are_written_and_read_by_index():
    torch.manual_seed(0)
    pool = empty_packed((2, 5, 3, 8, 16), 8, by_token=True)
    blocks = torch.randn(2, 3, 8, 16)
    pool[1, torch.tensor([4, 2])] = blocks
    assert torch.equal(pool[1, 2].float(), pack(blocks[1], 8, by_token=True).float())
    assert torch.equal(pool[1][torch.tensor([2, 4]), torch.tensor([0, 1])].float()[1], pool[1, 4, 1].float())
    assert pool.nbytes == pool.words.nbytes + pool.bounds.nbytes


BAD = {
    "k packed alone": (lambda k, v: (k, v.float()), "one of k and v is packed"),
    "two widths": (lambda k, v: (k, pack(v.float(), 4, by_token=True)), "k has 8 bits a channel and v 4"),
    "2 bits": (lambda k, v: (pack(k.float(), 2, by_token=False), pack(v.float(), 2, by_token=True)), "4 or 8 alike"),
    "keys by token": (lambda k, v: (pack(k.float(), 8, by_token=True), v), "k's words must go along the channels"),
    "pages": (lambda k, v: (k, v[:-1]), r"\[23, 2, 32, 64\]"),
    "bounds": (lambda k, v: (Packed(k.words, k.bounds.float(), 8, 32, False), v), "k.bounds is torch.float32"),
    "words": (lambda k, v: (Packed(k.words[:, :, :3], k.bounds, 8, 32, False), v), "k.words is"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_is_named(name):
    change, message = BAD[name]
    call, k, v = packed_call(Case("good"), 8)
    with cpu.Workers(1) as workers, pytest.raises(KernelError, match=message):
        workers.partial(call.q, *change(k, v), call.blocks, call.scale)
