"""I6: merge over any partition equals attention over the whole; merge is associative, commutative, -inf safe."""

from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoutattention.kernels import reference
from scoutattention.kernels.reference import merge
from scoutattention.runtime import workers as cpu
from scoutattention.types import BlockList, Partial

from .cases import Case, exact, make_call

WHOLE = make_call(Case("whole", B=2, H=2, N=12, lengths=(32, 1, 0, 17)), torch.float32)


@pytest.fixture(scope="module")
def workers():
    with cpu.Workers(1) as workers:
        yield workers


def some_partial(seed: int, empty_share: float) -> Partial:
    """Random outs and lse over a wide range; a share of the heads without keys."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.randn(2, 2, 3, 8, generator=generator, dtype=torch.float64)
    lse = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64) * 30
    empty = torch.rand(2, 2, 3, generator=generator) < empty_share
    return Partial(out.masked_fill(empty[..., None], 0), lse.masked_fill(empty, -torch.inf))


def assert_same(a: Partial, b: Partial) -> None:
    torch.testing.assert_close(a.lse, b.lse, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.out, b.out, rtol=1e-12, atol=1e-12)


seeds = st.integers(0, 2**32)
shares = st.sampled_from([0.0, 0.5, 1.0])


@given(seeds, seeds, shares, shares)
def test_merge_is_commutative(one, two, share_one, share_two):
    a, b = some_partial(one, share_one), some_partial(two, share_two)
    assert_same(merge(a, b), merge(b, a))


@given(seeds, seeds, seeds, shares)
def test_merge_is_associative(one, two, three, share):
    a, b, c = some_partial(one, share), some_partial(two, share), some_partial(three, share)
    assert_same(merge(merge(a, b), c), merge(a, merge(b, c)))


@given(seeds)
def test_a_side_without_keys_changes_nothing(seed):
    a, nothing = some_partial(seed, 0.3), some_partial(seed + 1, 1.0)
    assert_same(merge(a, nothing), a)
    assert_same(merge(nothing, a), a)
    assert not merge(nothing, nothing).out.isnan().any()


@given(st.lists(st.integers(0, 3), min_size=12, max_size=12), st.permutations(range(4)), st.booleans())
@settings(max_examples=30, deadline=None)
def test_i6_merge_over_any_partition_is_the_whole(workers, part_of_block, order, native):
    part = torch.tensor(part_of_block)
    attend = workers.partial if native else reference.partial
    results = []
    for number in order:
        blocks = BlockList(WHOLE.blocks.index, WHOLE.blocks.length.masked_fill(part != number, 0))
        results.append(attend(WHOLE.q, WHOLE.k, WHOLE.v, blocks, WHOLE.scale))
    merged, whole = reduce(merge, results), exact(WHOLE)
    torch.testing.assert_close(merged.out.double(), whole.out, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(merged.lse.double(), whole.lse, rtol=2e-5, atol=2e-5)
