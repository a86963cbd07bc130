"""The published set-up and ratios (arXiv 2603.27138, as public notes give them), simulated with today's engine.

Given: Qwen3-14B, one card of 80 GB, PCIe 4, 36 cores that attend at 100 GB/s, link copies of 15 GB/s in blocks of 32
tokens, budget 2,048, contexts of 64k; scout with 5.1 times the speed of full attention, idle for 6 %, and 2.1 times
that of same-layer and prefetching designs, idle for 57 and 61 %.
Assumed: an A100 PCIe; 40 sequences at once (the batch is not given, full attention holds 4); and the parts of the
chosen blocks that rivals lack, which are set so that they idle as published. The speed-ups then follow.
"""

from dataclasses import replace

import pytest

from scoutattention import ScoutConfig
from scoutattention.models.shapes.known import read_model
from scoutattention.planner import costs as measured
from scoutattention.planner.computers import CARDS, GIB, Computer, Processor
from scoutattention.planner.costs import costs_of
from scoutattention.planner.memory import largest_batch
from scoutattention.planner.planner import predict
from scoutattention.planner.simulator import Drift, Simulated, schedule_of, simulate
from scoutattention.planner.work import Costs, Work

ATTENDS, COPIES = 100e9, 15e9
CARD = CARDS["a100-80gb-pcie"]
HOST = Processor(36, 1024 * GIB, ATTENDS / measured.SCATTERED, "the paper", measured=True)
COMPUTER = Computer("the paper's", HOST, CARD)
BATCH, CONTEXT = 40, 65536
SHARES = {"scout": 0.082, "compute": 0.70, "fetch-ahead": 0.20}
"""Scout's is published; same-layer: the device holds recent blocks and few others; prefetch: a fifth is new to it."""


def work(batch):
    known = read_model("qwen3-14b")
    return Work(known.shape, known.tied, CONTEXT, batch, ScoutConfig(budget=2048))


def run(design, share=None) -> Simulated:
    """A step at the paper's bandwidths, with copies beside the device's work."""
    costs = costs_of(design, work(BATCH), COMPUTER)
    fetch = costs.layer.fetch * measured.LINK * CARD.link / COPIES
    schedule = replace(schedule_of(design, 40, work(BATCH).scout), beside=True)
    drift = Drift(SHARES[design] if share is None else share, spread=0.0)
    return simulate(Costs(replace(costs.layer, fetch=fetch), costs.head), schedule, drift.steps(1, 40))


def test_full_attention_holds_four_sequences():
    assert largest_batch("full", work(1), COMPUTER) == 4


def test_scout_has_five_times_the_speed_of_full_attention():
    full, scout = predict("full", work(4), COMPUTER), run("scout")
    assert BATCH / scout.step_s / (4 / full.step_s) == pytest.approx(5.1, rel=0.25)
    assert scout.idle < 0.06


@pytest.mark.parametrize(("design", "idle"), [("compute", 0.57), ("fetch-ahead", 0.61)])
def test_rivals_that_idle_as_published_have_half_the_speed(design, idle):
    rival = run(design)
    assert rival.idle == pytest.approx(idle, abs=0.05)
    assert rival.step_s / run("scout").step_s == pytest.approx(2.1, rel=0.25)
