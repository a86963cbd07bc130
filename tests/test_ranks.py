"""Sums over ranks, which here are threads, over gloo."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from scoutattention.errors import ConfigError, RankError
from scoutattention.ranks import ALONE, Group, gathered
from scoutattention.shape import ModelShape


def on_ranks(size, folder, work, patience_s=60.0):
    """What `work(ranks)` returns on each of `size` ranks."""
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda index: work(Group(folder, index, size, patience_s)), range(size)))


@pytest.mark.parametrize("size", [2, 3])
def test_sums_are_the_same_on_every_rank_and_leave_what_was_given(tmp_path, size):
    def work(ranks):
        mine = torch.arange(4.0).view(2, 2).T + ranks.index
        counts = torch.tensor([2**40 + ranks.index])
        return mine.clone(), ranks.sum(mine), mine, ranks.sum(counts)

    for given, total, kept, counts in on_ranks(size, tmp_path, work):
        assert torch.equal(total, torch.arange(4.0).view(2, 2).T * size + sum(range(size)))
        assert torch.equal(given, kept)
        assert counts.tolist() == [size * 2**40 + sum(range(size))]


def test_half_precision_is_added_in_float32(tmp_path):
    """In bfloat16 256 + 1 is 256, and some sum begins with that, whatever the order of the ranks."""
    mine = 1 + 255 * torch.eye(3, dtype=torch.bfloat16)
    totals = on_ranks(3, tmp_path, lambda ranks: ranks.sum(mine[ranks.index]))
    assert [(total.dtype, total.tolist()) for total in totals] == [(torch.bfloat16, [258.0] * 3)] * 3


def test_gathered_is_in_the_order_of_ranks(tmp_path):
    found = on_ranks(2, tmp_path, lambda ranks: gathered(ranks, torch.tensor([5, 7]) * (1 + ranks.index)))
    assert [each.tolist() for each in found] == [[[5, 7], [10, 14]]] * 2
    assert gathered(ALONE, torch.tensor([5, 7])).tolist() == [[5, 7]]


def test_a_silent_rank_is_an_error_in_time(tmp_path):
    asked = threading.Event()

    def work(ranks):
        if ranks.index:
            return asked.wait(30)
        try:
            with pytest.raises(RankError, match=r"rank 0 of 2 lost another rank, .* silent for 0.5 s"):
                ranks.sum(torch.zeros(1))
        finally:
            asked.set()
        return True

    assert on_ranks(2, tmp_path, work, patience_s=0.5) == [True, True]


def test_a_rank_that_does_not_come_is_an_error_in_time(tmp_path):
    with pytest.raises(RankError, match="rank 1 of 2 lost another rank"):
        Group(tmp_path, 1, 2, patience_s=0.2)


def test_a_shape_is_shared_evenly_or_refused():
    shape = ModelShape(2, 12, 6, 16, 64, 96, 100, max_positions=64)
    mine = shape.split(3)
    assert (mine.num_query_heads, mine.num_kv_heads, mine.group_size) == (4, 2, 2)
    assert (mine.intermediate_size, mine.hidden_size, mine.vocab_size) == (32, 64, 100)
    assert 3 * mine.kv_bytes_per_token == shape.kv_bytes_per_token
    assert shape.split(1) == shape
    with pytest.raises(ConfigError, match=r"4 ranks cannot share the model's 6 KV heads .* a divisor of 6"):
        shape.split(4)
    with pytest.raises(ConfigError, match=r"cannot share the model's 100 feed-forward .* a divisor of 2"):
        ModelShape(2, 6, 6, 16, 64, 100, 100, max_positions=64).split(6)
