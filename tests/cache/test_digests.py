"""Every kind of digest: written at prefill or when a block closes, it scores the same block the same."""

import pytest
import torch

from scoutattention.cache.digests.make import make_digests
from scoutattention.cache.pool import BlockPool
from scoutattention.kernels import reference
from scoutattention.kernels.native import NativeOps
from scoutattention.runtime.workers import Workers

from ..attention.rig import SHAPE

OPS = NativeOps(Workers(2))
LAYERS, HEADS, SIZE, DIM = SHAPE.num_layers, SHAPE.num_kv_heads, 8, SHAPE.head_dim
PAGES = torch.tensor([5, 0, 3])
PLAIN = {
    "minmax": lambda q, k: reference.score_min_max(q, reference.min_max(k), torch.arange(3).int()[None]),
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
        scores = by_layer.score(layer, q, PAGES.int()[None])
        assert torch.equal(scores, by_page.score(layer, q, PAGES.int()[None]))
        want = PLAIN[name](q * SHAPE.scale, k[layer])
        torch.testing.assert_close(scores, want, rtol=1e-5, atol=0.06 if name == "keys2" else 1e-5)


def test_key_codes_take_two_bits_a_channel_and_two_bounds():
    pool = BlockPool(SHAPE, 32, 6, knob="host_memory")
    digests = make_digests("keys2", SHAPE, pool, OPS)
    assert digests.bytes_per_token() * 32 == LAYERS * HEADS * 12 * DIM
