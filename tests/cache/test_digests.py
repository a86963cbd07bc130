"""Every kind of digest: written at prefill or when a block closes, it scores the same block the same."""

import pytest
import torch

from scoutattention.cache.digests.kinds import make_digests
from scoutattention.cache.pool import BlockPool
from scoutattention.kernels import reference
from scoutattention.kernels.native.ops import NativeOps
from scoutattention.runtime.workers import Workers

from ..attention.rig import SHAPE

OPS = NativeOps(Workers(2))
LAYERS, HEADS, SIZE, DIM = SHAPE.num_layers, SHAPE.num_kv_heads, 8, SHAPE.head_dim
PAGES, CLOSED = torch.tensor([5, 0, 3]), torch.tensor([3])
PLAIN = {
    "minmax": lambda q, k: reference.score_digests(q, reference.min_max(k), torch.arange(3).int()[None]),
    "keys2": lambda q, k: reference.score_key_codes(q, *reference.key_codes(k), torch.arange(3).int()[None]),
    "exact": lambda q, k: reference.score_exactly(q, k, torch.arange(3).int()[None]),
}


@pytest.mark.parametrize("name", PLAIN)
def test_scores_are_the_plain_ones_however_a_block_was_written(name):
    torch.manual_seed(0)
    pool = BlockPool(SHAPE, SIZE, 6, knob="host_memory")
    pool.k.normal_()
    by_layer, by_page = (make_digests(name, SHAPE, pool, OPS) for _ in range(2))
    k = pool.k[:, PAGES]  # [L, 3, H, P, D]
    for layer in range(LAYERS):
        by_layer.put(k[layer], layer * 6 + PAGES)
    for number, page in enumerate(PAGES):
        by_page.put(k[:, number], torch.arange(LAYERS) * 6 + page)
    q = torch.randn(1, HEADS, 3, DIM) * 3
    for layer in range(LAYERS):
        scores = by_layer.score(layer, q, PAGES.int()[None], CLOSED)
        assert torch.equal(scores, by_page.score(layer, q, PAGES.int()[None], CLOSED))
        want = PLAIN[name](q * SHAPE.scale, k[layer])
        torch.testing.assert_close(scores, want, rtol=1e-5, atol=0.06 if name == "keys2" else 1e-5)


def test_key_codes_take_two_bits_a_channel_and_two_bounds():
    pool = BlockPool(SHAPE, 32, 6, knob="host_memory")
    digests = make_digests("keys2", SHAPE, pool, OPS)
    assert digests.bytes_per_token() * 32 == LAYERS * HEADS * 12 * DIM


def test_two_stages_give_survivors_exact_scores_and_the_others_comparable_ones():
    torch.manual_seed(0)
    pool = BlockPool(SHAPE, SIZE, 40, knob="host_memory")
    pool.k.normal_()
    pool.v.normal_()
    pages, q = torch.randperm(40).int().reshape(2, 20), torch.randn(2, HEADS, 3, DIM) * 3
    closed = torch.tensor([20, 20])
    first, both = (make_digests(name, SHAPE, pool, OPS, survivors=6) for name in ("keys2", "twostage"))
    for digests in (first, both):
        digests.put(pool.k[1], 40 + torch.arange(40))
    exact = make_digests("exact", SHAPE, pool, OPS).score(1, q, pages, closed)
    rough, scores = (digests.score(1, q, pages, closed) for digests in (first, both))
    best = torch.zeros(2, HEADS, 20).scatter_(-1, rough.softmax(-1).mean(2).topk(6).indices, 1.0).bool()[:, :, None]
    torch.testing.assert_close(scores.masked_fill(~best, 0), exact.masked_fill(~best, 0))
    excess = ((rough - exact) * best).sum(-1, keepdim=True) / 6
    torch.testing.assert_close(scores.masked_fill(best, 0), (rough - excess).masked_fill(best, 0))
    assert both.bytes_per_token() == first.bytes_per_token()


def test_when_all_blocks_survive_two_stages_are_exact():
    torch.manual_seed(0)
    pool = BlockPool(SHAPE, SIZE, 6, knob="host_memory")
    pool.k.normal_()
    q, pages = torch.randn(1, HEADS, 3, DIM), PAGES.int()[None]
    digests = make_digests("twostage", SHAPE, pool, OPS, survivors=64)
    digests.put(pool.k[2, PAGES], 2 * 6 + PAGES)
    torch.testing.assert_close(
        digests.score(2, q, pages, CLOSED), make_digests("exact", SHAPE, pool, OPS).score(2, q, pages, CLOSED)
    )


def test_what_lies_in_pages_of_no_block_does_not_matter_to_two_stages():
    """A short sequence beside a long one, and alone."""
    torch.manual_seed(0)
    pool = BlockPool(SHAPE, SIZE, 40, knob="host_memory")
    pool.k.normal_()
    pool.k[:, 20:] *= 9
    digests = make_digests("twostage", SHAPE, pool, OPS, survivors=6)
    digests.put(pool.k[0], torch.arange(40))
    q, pages = torch.randn(2, HEADS, 3, DIM) * 3, torch.arange(40).int().reshape(2, 20)
    pages[0, 8:] = torch.arange(20, 32)
    beside = digests.score(0, q, pages, torch.tensor([8, 20]))[:1, ..., :8]
    alone = digests.score(0, q[:1], pages[:1, :8], torch.tensor([8]))
    torch.testing.assert_close(beside, alone)
