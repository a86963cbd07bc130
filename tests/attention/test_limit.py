"""The CPU share limit: what is least wished for stays behind, and only while there is too much."""

import pytest
import torch

from scoutattention.attention.share_limit import LOWEST, CpuShareLimit
from scoutattention.kernels.reference_recall import adapted, follow_shares
from scoutattention.runtime.workers import Workers
from scoutattention.types import SharePolicy, ShareRequest

from .rig import Rig
from .test_invariants import scout
from .test_scout import run

WORKERS = Workers(2)


def test_the_threshold_rises_with_too_large_a_share_and_falls_with_a_small_one():
    least = adapted(torch.ones(4), torch.tensor([0.5, 1.0, 2.0, 100.0]))
    assert least[0] < 1 == least[1] < least[2] < least[3] < 3


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_a_stubborn_share_is_brought_below_its_limit(share):
    """Where nothing is resident, every chosen block is absent; only the sink and the recent one must be."""
    rig = Rig(scout(4, budget=60, max_cpu_share=share, recall_interval=0, lookahead=0), 6, workers=WORKERS)
    rig.add(180)
    shares = []
    for _ in range(40):
        stats = rig.step()[2]
        shares.append(stats.far_blocks / stats.chosen_blocks)
    assert shares[0] > 0.3
    assert sum(shares[-10:]) / 10 < 1.25 * share


def test_without_a_limit_every_chosen_block_is_attended_to():
    rig = Rig(scout(4, budget=60, max_cpu_share=None, lookahead=0), 0, workers=WORKERS)
    rig.add(97)
    stats = [rig.step()[2] for _ in range(9)]
    assert all(step.far_blocks == step.chosen_blocks == 3 * 2 * 14 for step in stats)


@pytest.mark.parametrize("on_miss", ["fetch", "drop"])
def test_what_the_cpu_does_not_compute_is_not_limited(on_miss):
    rig = Rig(scout(4, budget=60, max_cpu_share=0.01, on_miss=on_miss), 16, workers=WORKERS)
    rig.add(180)
    assert all(rig.step()[2].chosen_blocks == 3 * 2 * 14 for _ in range(9))


def test_a_new_sequence_begins_with_the_lowest():
    config = scout(4, budget=40, max_cpu_share=0.05)
    rig = Rig(config, 0, workers=WORKERS)
    limit = CpuShareLimit(config, rig.store)
    rig.add(97)
    batch = rig.store.prepare([0])
    assert limit.threshold(batch).tolist() == pytest.approx([LOWEST / 9])
    shares, policy = torch.tensor([[[10], [10]], [[0], [9]]]), SharePolicy(None, 0, limit.limit, *limit.bounds)
    for _ in range(20):
        follow_shares(ShareRequest(shares, batch.index, torch.zeros(1, 4), limit.thresholds, policy, torch.tensor(0)))
    assert limit.threshold(batch).tolist() == pytest.approx([1 / 9])  # and no higher
    rig.store.release(0)
    rig.store.admit(0, 4, 0)
    assert limit.threshold(batch).tolist() == pytest.approx([LOWEST / 9])


def test_sink_and_recent_blocks_are_attended_to_however_small_the_wish():
    rig = Rig(scout(4, budget=60, max_cpu_share=0.01, recall_interval=0, lookahead=0), 0, workers=WORKERS)
    rig.add(180)
    for _ in range(40):
        stats = rig.step()[2]
    assert 2 * 3 * 2 <= stats.far_blocks < 3 * 3 * 2


@pytest.mark.parametrize("quota", [0, 3])
def test_a_context_within_the_budget_attends_to_every_block(quota):
    assert run(Rig(scout(4, budget=200, max_cpu_share=0.01), quota, workers=WORKERS), [97], steps=20) < 1e-5
