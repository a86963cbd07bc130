"""Every implementation of a decode step's operations gives what the plain one does, on the same table of shapes."""

from dataclasses import dataclass

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.kernels import reference
from scoutattention.kernels.native.ops import NativeOps
from scoutattention.kernels.plain import PlainOps
from scoutattention.kernels.triton.ops import TritonOps
from scoutattention.runtime.packed import from_words, pack
from scoutattention.runtime.workers import Workers
from scoutattention.types import BlockList, Copies, GuardRequest, PageSelection, Partial, SplitRequest

CPU = torch.device("cpu")
PLAIN = PlainOps(CPU)
OPS = {"native": NativeOps(Workers(2)), "triton": TritonOps(CPU)}


@dataclass(frozen=True)
class Sizes:
    """N blocks of a choice among NB; P positions of a block; S pages."""

    B: int = 2
    H: int = 2
    G: int = 3
    D: int = 64
    N: int = 5
    NB: int = 9
    S: int = 20
    P: int = 8


SIZES = [
    Sizes(),
    Sizes(B=3, H=1, G=1, D=16, N=1, NB=1, P=16),
    Sizes(B=1, H=3, G=7, D=80, N=17, NB=300, S=310, P=5),
    Sizes(B=1, G=8, D=128, N=33, NB=40, S=41, P=32),
]


@pytest.fixture(params=SIZES, ids=str)
def sizes(request) -> Sizes:
    torch.manual_seed(0)
    return request.param


@pytest.fixture(params=OPS)
def ops(request):
    return OPS[request.param]


def queries(s: Sizes) -> torch.Tensor:
    return torch.randn(s.B, s.H, s.G, s.D)


def pages_of(s: Sizes) -> torch.Tensor:
    return torch.stack([torch.randperm(s.S)[: s.NB] for _ in range(s.B)]).int()


def chosen(s: Sizes) -> torch.Tensor:
    return torch.rand(s.B, s.H, s.NB).argsort(-1)[..., : s.N].contiguous()


def masks(*shape: int) -> torch.Tensor:
    return torch.rand(shape) < 0.6


def partials(s: Sizes, *, empty: bool = True) -> tuple[Partial, Partial]:
    made = [Partial(queries(s), 3 * torch.randn(s.B, s.H, s.G), queries(s)) for _ in range(2)]
    if empty:
        for side in (made[0], made[1]):
            side.lse[0, 0, 0] = -torch.inf
            side.out[0, 0, 0] = 0
    return made[0], made[1]


def assert_same(got, want, tolerance: float = 1e-5) -> None:
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def test_partial(ops, sizes):
    s = sizes
    q, k, v = queries(s), torch.randn(s.S, s.H, s.P, s.D), torch.randn(s.S, s.H, s.P, s.D)
    blocks = BlockList(torch.randint(0, s.S, (s.B, s.H, s.N)).int(), torch.randint(0, s.P + 1, (s.B, s.H, s.N)).int())
    assert_same(ops.partial(q, k, v, blocks, 0.2)[:2], PLAIN.partial(q, k, v, blocks, 0.2)[:2], 1e-4)


def test_partial_of_packed_pages():
    s, ops = Sizes(), OPS["native"]
    q, rows = queries(s), torch.randn(2, s.S, s.H, s.P, s.D)
    k, v = pack(rows[0], 8, by_token=False), pack(rows[1], 8, by_token=True)
    blocks = BlockList(torch.randint(0, s.S, (s.B, s.H, s.N)).int(), torch.full((s.B, s.H, s.N), s.P).int())
    assert_same(ops.partial(q, k, v, blocks, 0.2)[:2], PLAIN.partial(q, k, v, blocks, 0.2)[:2], 1e-3)
    with pytest.raises(KernelError, match="leave kv_dtype at 'auto'"):
        OPS["triton"].partial(q, k, v, blocks, 0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lists_and_what_is_handed_over(ops, sizes, dtype):
    s = sizes
    table = torch.randint(0, s.S, (s.B, 2 * s.NB)).int()[:, : s.NB]
    what = PageSelection(table, chosen(s), masks(s.B, s.H, s.N), s.P)
    got, want = ops.page_list(what), PLAIN.page_list(what)
    assert_same(got, want, 0)
    assert want.length.unique().tolist() in ([0, s.P], [0], [s.P])
    q = queries(s).to(dtype)
    made = [(torch.ones(q.shape), BlockList(*torch.ones((2, *what.blocks.shape), dtype=torch.int32))) for _ in range(2)]
    ops.stage_call(q, what, made[0])
    PLAIN.stage_call(q, what, made[1])
    assert torch.equal(made[0][0], q.float())
    assert_same(made[0][1], want, 0)
    assert torch.equal(made[1][0], q.float())
    assert_same(made[1][1], want, 0)


def test_appended_tokens(ops, sizes):
    s = sizes
    got = torch.zeros(2, s.S, s.H, s.P, s.D)
    want, new = got.clone(), torch.randn(2, s.B, s.H, s.D)
    entry, fill = torch.randperm(s.S)[: s.B], torch.randint(0, s.P, (s.B,))
    ops.append(*new, tuple(got), entry, fill)
    PLAIN.append(*new, tuple(want), entry, fill)
    assert torch.equal(got, want)
    assert torch.equal(got[0, entry[0], :, fill[0]], new[0, 0])


def prompt_keys(s: Sizes, dtype: torch.dtype) -> torch.Tensor:
    """Keys [N, H, P, D] as a prompt's are cut into blocks: not contiguous."""
    return torch.randn(s.N, s.P, s.H, s.D).to(dtype).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_digests_made(ops, sizes, dtype):
    s = sizes
    k, pages = prompt_keys(s, dtype), torch.randperm(s.S)[: s.N]
    got = torch.full((s.S, s.H, 2 * s.D), 7.0)
    want = got.clone()
    ops.write_min_max(k, got, pages)
    PLAIN.write_min_max(k, want, pages)
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_key_codes_made(ops, sizes, dtype):
    s = sizes
    k, pages = prompt_keys(s, dtype), torch.randperm(s.S)[: s.N]
    k[0, 0, :, 0] = 0.25  # a channel that does not change
    made = [(torch.full((s.S, s.H, -(-s.D // 16), s.P, 4), 7, dtype=torch.uint8), torch.ones(s.S, s.H, 2, s.D).half())]
    made.append((made[0][0].clone(), made[0][1].clone()))
    ops.write_key_codes(k, *made[0], pages)
    PLAIN.write_key_codes(k, *made[1], pages)
    (words, bounds), (want, same) = made
    assert torch.equal(bounds, same)
    apart = from_words(words, 2, s.D).int() - from_words(want, 2, s.D).int()
    assert apart.abs().max() <= 1
    assert (apart != 0).float().mean() < 1e-3, "only keys halfway between two codes"
    padding = from_words(words[pages], 2, -(-s.D // 16) * 16)[..., s.D :]
    assert not padding.any()


def test_digest_scores(ops, sizes):
    s = sizes
    q, digests, pages = queries(s), reference.min_max(torch.randn(s.S, s.H, s.P, s.D)), pages_of(s)
    assert_same([ops.score_min_max(q, digests, pages, 0.3)], [PLAIN.score_min_max(q, digests, pages, 0.3)], 1e-4)


def test_key_code_scores(ops, sizes):
    """The native kernel rounds products to 8 bits."""
    s = sizes
    q, pages = queries(s) * s.D**-0.5, pages_of(s)
    codes, bounds = reference.key_codes(torch.randn(s.S, s.H, s.P, s.D))
    tolerance = 1e-4 if isinstance(ops, TritonOps) else 0.05
    got, want = (each.score_key_codes(q, codes, bounds, pages, 0.3) for each in (ops, PLAIN))
    assert_same([got], [want], tolerance)


@pytest.mark.parametrize("largest", [False, True])
def test_top_blocks(ops, sizes, largest):
    s = sizes
    scores, closed = 4 * torch.randn(s.B, s.H, s.G, s.NB), torch.randint(0, s.NB + 1, (s.B,))
    got, want = (each.top_blocks(scores, closed, s.N, (1, 2), largest=largest) for each in (ops, PLAIN))
    assert_same([got.all_wishes], [want.all_wishes])
    there = want.blocks < closed[:, None, None]
    assert torch.equal(got.blocks < closed[:, None, None], there)
    assert torch.equal(got.blocks[there], want.blocks[there])
    assert torch.equal(got.wishes, got.all_wishes.gather(-1, got.blocks))


def test_split_choice(ops, sizes):
    s = sizes
    args = chosen(s), torch.rand(s.B, s.H, s.N), torch.randint(0, s.NB + 1, (s.B,))
    slots = torch.randint(0, 4, (2, s.B, s.H, s.NB + 3))[0], 3
    for rows in ((masks(s.B), masks(s.B), torch.rand(s.B)), (masks(s.B) | True, masks(s.B) & False, torch.rand(s.B))):
        counts = torch.full((2, 2, s.B, s.H), 7)
        got, want = (
            each.split_choice(SplitRequest(*args, slots, rows, 1, count))
            for each, count in zip((ops, PLAIN), counts, strict=True)
        )
        assert_same(got, want)
        assert torch.equal(*counts)


def test_updated_interest(ops, sizes):
    s = sizes
    before, wishes, rows = torch.rand(s.B, s.H, s.NB + 4), torch.rand(s.B, s.H, s.NB), masks(s.B)
    interests = [before.clone(), before.clone()]
    for each, interest in zip((ops, PLAIN), interests, strict=True):
        each.update_interest(interest, wishes, rows, 0.8)
    assert_same(interests[:1], interests[1:])


def test_late(ops, sizes):
    s = sizes
    wanted, scouted = (chosen(s), masks(s.B, s.H, s.N), torch.rand(s.B, s.H, s.N)), (chosen(s), masks(s.B, s.H, s.N))
    error = torch.rand(s.B, s.H)
    error[0, 0] = torch.nan
    for rows in (masks(s.B), masks(s.B) | True):
        counts = torch.full((2, 2, s.B, s.H), 7)
        got, want = (
            each.find_late(GuardRequest(wanted, scouted, error, rows, 0.7, count))
            for each, count in zip((ops, PLAIN), counts, strict=True)
        )
        assert_same(got, want)
        assert torch.equal(*counts)


def test_scout_error(ops, sizes):
    near, far = partials(sizes, empty=False)
    far.lse[-1, -1] = -torch.inf
    q = queries(sizes)
    q_hat = q + 0.3 * queries(sizes)
    assert_same([ops.scout_error(far, near, q, q_hat)], [PLAIN.scout_error(far, near, q, q_hat)])
    q_hat[0, 0, 0, 0] = torch.nan
    assert ops.scout_error(far, near, q, q_hat)[0, 0].isnan(), "what is no number is not small"


def test_correction_and_merge(ops, sizes):
    near, far = partials(sizes)
    q, q_hat = queries(sizes), queries(sizes)
    got, want = (each.corrected(far, q, q_hat, 0.2) for each in (ops, PLAIN))
    assert_same(got, want)
    assert_same(ops.merge(near, got)[:2], PLAIN.merge(near, want)[:2])
    assert not ops.merge(near, got).out.isnan().any()


def test_a_merge_without_some_heads(ops, sizes):
    a, b = partials(sizes)
    without = masks(sizes.B, sizes.H)
    without[0, 0] = True
    a.out[0, 0], a.lse[0, 0, -1] = torch.nan, torch.nan
    got, want = ops.merge(a, b, without)[:2], PLAIN.merge(a, b, without)[:2]
    assert_same(got, want)
    assert torch.equal(torch.stack(got[:1])[0][0, 0], b.out[0, 0])


@pytest.mark.parametrize("packed", [False, True])
def test_copies(ops, packed):
    s, layers, entries = Sizes(), 3, 30
    pools = torch.randn(2, layers, s.S, s.H, s.P, s.D)
    source = (pools[0], pools[1])
    if packed:
        source = (pack(pools[0], 8, by_token=False), pack(pools[1], 8, by_token=True))
    moves = 11
    place = torch.randperm(layers * entries * s.H)[:moves]
    page = torch.randint(0, s.S, (moves,))
    layer, entry, head = place // (entries * s.H), place // s.H % entries, place % s.H
    targets = [torch.zeros(2, layers, entries, s.H, s.P, s.D) for _ in range(2)]
    for each, target in zip((ops, PLAIN), targets, strict=True):
        each.copy_blocks(source, (target[0], target[1]), Copies(layer, page, entry, head))
    assert torch.equal(*targets)
    assert targets[0].count_nonzero() > 0


@pytest.mark.parametrize("packed", [False, True])
def test_written_blocks(ops, packed):
    s = Sizes()
    new = torch.randn(2, 4, s.P, s.H, s.D).transpose(2, 3)
    pages = torch.randperm(s.S)[:4]
    kept = []
    for each in (ops, PLAIN):
        pools = torch.zeros(2, s.S, s.H, s.P, s.D)
        target = (pack(pools[0], 8, by_token=False), pack(pools[1], 8, by_token=True)) if packed else tuple(pools)
        each.write_blocks((new[0], new[1]), target, pages)
        kept.append(torch.stack([pool.float() for pool in target]))
    assert torch.equal(*kept)
    assert kept[0].count_nonzero() > 0
