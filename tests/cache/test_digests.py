"""Every kind of digest: written at prefill or when a block closes, it scores the same block the same."""

from dataclasses import replace

import pytest
import torch

from scoutattention.cache.digests.basis import Basis, Seen, fit_bases
from scoutattention.cache.digests.key_codes import FirstDims
from scoutattention.cache.digests.make import make_digests
from scoutattention.cache.digests.stages import Stages
from scoutattention.cache.memory_plan import TABLE_BYTES, digest_bytes, kept_dims, scan_dims, state_bytes
from scoutattention.cache.pool import BlockPool
from scoutattention.config import EngineConfig, ScoutConfig
from scoutattention.kernels import reference
from scoutattention.kernels.native import NativeOps
from scoutattention.runtime.workers import Workers

from ..attention.rig import SHAPE

OPS = NativeOps(Workers(2))
LAYERS, HEADS, SIZE, DIM, ROWS = SHAPE.num_layers, SHAPE.num_kv_heads, 8, SHAPE.head_dim, 2
PAGES = torch.tensor([5, 0, 3])
LISTED = torch.arange(3).int().expand(1, HEADS, -1)
CLOSED = torch.tensor([3])
PLAIN = {
    "minmax": lambda q, k: reference.score_min_max(q, reference.min_max(k), LISTED),
    "keys2": lambda q, k: reference.score_key_codes(q, *reference.key_codes(k), LISTED),
    "exact": lambda q, k: reference.score_exactly(q, k, LISTED),
}


def make(name: str, pool: BlockPool, dims: tuple[int, int] = (4, DIM)) -> Stages:
    return make_digests(name, SHAPE, pool, OPS, rows=ROWS, dims=dims)


@pytest.mark.parametrize("name", [*PLAIN, "two-stage"])
def test_scores_are_the_plain_ones_however_a_block_was_written(name):
    torch.manual_seed(0)
    pool = BlockPool(SHAPE, SIZE, 6, knob="host_memory")
    pool.k.normal_()
    by_layer, by_page = (make(name, pool) for _ in range(2))
    k = pool.k[:, PAGES]  # [L, 3, H, P, D]
    for layer in range(LAYERS):
        q, keys = torch.randn(30, HEADS, 3, DIM), torch.randn(90, HEADS, DIM)
        for digests in (by_layer, by_page):
            digests.fit(1, layer, [Seen(q, keys)])
        by_layer.put(k[layer], layer * 6 + PAGES, torch.tensor([layer * ROWS + 1]))
    for number, page in enumerate(PAGES):
        by_page.put(k[:, number], torch.arange(LAYERS) * 6 + page, torch.arange(LAYERS) * ROWS + 1)
    q = torch.randn(1, HEADS, 3, DIM) * 3
    for layer in range(LAYERS):
        for stage in ("scan", "judge"):
            seen = layer, q, slice(1, 2), PAGES.int().expand(1, HEADS, -1), CLOSED
            scores = getattr(by_layer, stage).score(*seen)
            assert torch.equal(scores, getattr(by_page, stage).score(*seen))
            if name != "two-stage":
                tolerance = {"rtol": 1e-5, "atol": 0.06 if name == "keys2" else 1e-5}
                torch.testing.assert_close(scores, PLAIN[name](q * SHAPE.scale, k[layer]), **tolerance)


def test_key_codes_take_two_bits_a_channel_and_two_bounds():
    """In main dimensions too, of those that are kept: a scan reads the first of them."""
    pool = BlockPool(SHAPE, 32, 6, knob="host_memory")
    for name in ("keys2", "two-stage"):
        assert make(name, pool).block_bytes() == 4 * 32 + 4 * DIM
    assert make("two-stage", pool, (4, 9)).block_bytes() == 4 * 32 + 4 * 9


@pytest.mark.parametrize("head_dim", [16, 48, 64, 128])
def test_digests_and_bases_are_as_large_as_planned(head_dim):
    shape, scout = replace(SHAPE, head_dim=head_dim), ScoutConfig()
    size, heads = scout.block_size, shape.num_layers * shape.num_kv_heads
    pool = BlockPool(shape, size, 3, knob="host_memory")
    digests = make_digests("two-stage", shape, pool, OPS, rows=1, dims=(scan_dims(shape), kept_dims(shape)))
    assert heads * (digests.block_bytes() + TABLE_BYTES) == digest_bytes(shape, scout)
    engine_config = EngineConfig(device_memory="all")
    assert sum(part.nbytes for part in digests.judge.basis) == state_bytes(shape, scout, engine_config)


def test_the_main_dimensions_that_are_kept_are_the_first_of_all():
    torch.manual_seed(0)
    pool = BlockPool(SHAPE, SIZE, 6, knob="host_memory")
    prompt = torch.randn(30, HEADS, 3, DIM), torch.randn(90, HEADS, DIM)
    some, every = make("two-stage", pool, (4, 9)), make("two-stage", pool)
    for digests in (some, every):
        digests.fit(1, 0, [Seen(*prompt)])
        digests.put(torch.stack(prompt[1][:24].split(SIZE)).transpose(1, 2), PAGES, torch.tensor([1]))
    seen = torch.randn(1, HEADS, 3, DIM), slice(1, 2), PAGES.int().expand(1, HEADS, -1), CLOSED
    assert torch.equal(some.scan.score(0, *seen), every.scan.score(0, *seen))
    first = FirstDims(every.judge, 9)
    assert torch.equal(some.judge.score(0, *seen), first.score(0, *seen))


def basis_of(q: torch.Tensor, k: torch.Tensor) -> Basis:
    """The basis of one layer."""
    return Basis(*(part[0] for part in fit_bases([Seen(q, k)], OPS)))


def keys_of_few_dims(dims: int, tokens: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [n, H, G, D] and keys [T, H, D] that meet in `dims` directions, and loud keys where no query looks."""
    torch.manual_seed(2)
    axes = torch.linalg.qr(torch.randn(HEADS, DIM, DIM)).Q
    q = torch.randn(200, HEADS, 3, DIM) * (0.02 + (torch.arange(DIM) < dims))
    k = torch.randn(tokens, HEADS, DIM) * (0.02 + 30 * (torch.arange(DIM) >= DIM - 4) + (torch.arange(DIM) < dims))
    return torch.einsum("nhgd,hed->nhge", q, axes), torch.einsum("thd,hed->the", k, axes) + 5


def test_a_basis_loses_nothing_in_all_dimensions_and_little_in_the_first():
    q, k = keys_of_few_dims(3)
    of_keys, of_queries = basis_of(q, k)
    keys, queries = k.transpose(0, 1) @ of_keys.mT, torch.einsum("nhgd,hed->hnge", q, of_queries)
    exact = torch.einsum("nhgd,thd->hngt", q, k)
    torch.testing.assert_close(torch.einsum("hngd,htd->hngt", queries, keys), exact, rtol=1e-3, atol=1e-2)
    few = torch.einsum("hngd,htd->hngt", queries[..., :6], keys[..., :6])
    error = (few - exact) - (few - exact).mean(-1, keepdim=True)  # a constant of a query changes no softmax
    spread = exact - exact.mean(-1, keepdim=True)
    assert error.norm() < 0.35 * spread.norm()
    worst = torch.einsum("hngd,htd->hngt", queries[..., 10:], keys[..., 10:])
    assert (worst - worst.mean(-1, keepdim=True)).norm() < 0.35 * spread.norm(), (
        "what is left out is what matters least"
    )


def test_the_main_dimensions_of_a_short_prompt_are_channels():
    q, k = torch.randn(9, HEADS, 3, DIM), torch.randn(9, HEADS, DIM)
    k[:, :, 7] *= 100
    of_keys, of_queries = basis_of(q, k)
    for part in (of_keys, of_queries):
        assert ((part != 0).sum(-1) == 1).all()
        assert (part[:, 0, 7] != 0).all(), "the loudest is the first"
    torch.testing.assert_close(of_queries.mT @ of_keys, torch.eye(DIM).expand(HEADS, DIM, DIM))
    for part in basis_of(q[:1], k[:1]):
        assert part.isfinite().all()


@pytest.mark.parametrize("broken", ["q", "k"])
def test_a_prompt_that_is_no_number_has_a_basis_all_the_same(broken):
    digests = make("two-stage", BlockPool(SHAPE, SIZE, 6, knob="host_memory"))
    prompt = {"q": torch.randn(9, HEADS, 3, DIM), "k": torch.randn(90, HEADS, DIM)}
    prompt[broken][4] = torch.nan
    digests.fit(0, 1, [Seen(**prompt)])
    for part in digests.judge.basis:
        assert part[1, 0].isfinite().all()
        assert (part[1, 0] != 0).any()


def test_each_sequence_has_a_basis_of_its_own():
    torch.manual_seed(0)
    pool = BlockPool(SHAPE, SIZE, 6, knob="host_memory")
    digests, exact = make("two-stage", pool), ["exact", torch.randn(2, HEADS, SIZE, DIM)][1]
    for row in range(ROWS):
        digests.fit(row, 0, [Seen(torch.randn(30, HEADS, 3, DIM), torch.randn(90, HEADS, DIM))])
    digests.put(exact, torch.tensor([4, 2]), torch.tensor([0, 1]))
    q, pages = torch.randn(2, HEADS, 3, DIM), torch.tensor([4, 2]).int()[:, None, None].expand(2, HEADS, 1)
    want = reference.score_exactly(
        q * SHAPE.scale, exact, torch.tensor([0, 1]).int()[:, None, None].expand(2, HEADS, 1)
    )
    closed = torch.ones(2, dtype=torch.int64)
    right = (digests.judge.score(0, q, slice(0, 2), pages, closed) - want).abs().mean()
    wrong = (digests.judge.score(0, q, torch.tensor([1, 0]), pages, closed) - want).abs().mean()
    assert right < 0.15
    assert wrong > 3 * right


@pytest.mark.parametrize("power", [40, -40, 100, -100])
def test_main_dimensions_of_keys_of_any_size_are_numbers_that_digests_hold(power):
    """Keys times a power of two, and queries over it, have the products that they had."""
    torch.manual_seed(0)
    q, k, size = torch.randn(64, 2, 3, 8), torch.randn(64, 2, 8), 2.0**power
    plain, scaled = basis_of(q, k), basis_of(q / size, k * size)
    main = torch.einsum("thd,hcd->htc", k * size, scaled.of_keys)
    assert 1e-4 < main.abs().amax() < 1e5
    queries, exact = (
        torch.einsum("nhgd,hcd->hngc", x, basis.of_queries) for x, basis in ((q / size, scaled), (q, plain))
    )
    want = torch.einsum("hngc,htc->hngt", exact, torch.einsum("thd,hcd->htc", k, plain.of_keys))
    torch.testing.assert_close(torch.einsum("hngc,htc->hngt", queries, main), want, rtol=1e-3, atol=1e-3)
