"""The method against full attention: where it must be exact, it is; where it may not be, it does what was asked."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoutattention.attention.scout import source_layers
from scoutattention.config import ScoutConfig
from scoutattention.errors import ConfigError
from scoutattention.kernels.native import NativeOps
from scoutattention.runtime.workers import Workers

from .rig import SHAPE, Rig
from .test_invariants import drop_random, scout

WORKERS = Workers(2)


def run(rig: Rig, lengths: list[int], steps: int = 10) -> float:
    for tokens in lengths:
        rig.add(tokens)
    return max(rig.error(*rig.step()[:2]) for _ in range(steps))


def test_prompt_attention_is_causal_and_exact():
    rig = Rig(scout(4), 3)
    for layer, (q, out) in enumerate(rig.add(21)):
        k, v = (t[0][layer].double().transpose(0, 1)[:, None] for t in (rig.keys, rig.values))
        future = torch.ones(21, 21).triu(1).bool()
        scores = (q.double().permute(1, 2, 0, 3) @ k.transpose(2, 3)) * 16**-0.5
        expected = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        assert (out.permute(1, 2, 0, 3) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("quota", [None, 0, 1, 7, 60])
def test_no_budget_is_full_attention_wherever_blocks_live(quota):
    rig = Rig(scout(4, budget=None, predictor="oracle"), quota, workers=WORKERS)
    assert run(rig, [3, 40, 97]) < 1e-5


@pytest.mark.parametrize("quota", [None, 0, 7, 60])
def test_a_sink_logit_takes_weight_from_all_keys_wherever_blocks_live(quota):
    """Against full attention with one more score of each query head, whose value is zero."""
    sinks = 2 * torch.randn(SHAPE.num_layers, SHAPE.num_kv_heads, SHAPE.group_size) + 3
    rig = Rig(scout(4, budget=None, predictor="oracle"), quota, workers=WORKERS, sink_logits=sinks)
    assert run(rig, [3, 40, 97]) < 1e-5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 2**31))
def test_with_the_oracle_the_device_holding_less_changes_nothing_chosen_by_budget(quota, other, seed):
    """With every slot outside the budget's choice empty, near + far is exactly the choice, whatever is resident."""
    results = []
    for slots in (quota, other):
        rig = Rig(scout(4, predictor="oracle", budget=None, recall_interval=1), slots, seed, WORKERS)
        rig.add(90)
        outs = []
        for _ in range(3):
            state = torch.get_rng_state()
            drop_random(rig)
            torch.set_rng_state(state)
            outs.append(torch.stack(rig.step()[1]))
        results.append(torch.stack(outs))
    assert (results[0] - results[1]).abs().max() < 1e-5


@pytest.mark.parametrize("quota", [0, 2, 9])
@pytest.mark.parametrize("lookahead", [1, 2, 5])
def test_a_context_within_the_budget_is_exact_even_with_useless_scouts(quota, lookahead):
    rig = Rig(scout(4, budget=200, lookahead=lookahead), quota, workers=WORKERS)
    assert run(rig, [3, 40, 97]) < 1e-5


def test_a_context_beyond_the_budget_is_approximate_and_uses_the_cpu():
    rig = Rig(scout(4, budget=40), 12, workers=WORKERS)
    rig.add(97)
    qs, outs, stats = rig.step()
    assert 1e-3 < rig.error(qs, outs) < 1
    assert stats.chosen_blocks == 3 * 2 * 9
    assert 0 < stats.far_blocks < stats.chosen_blocks


@pytest.mark.parametrize("options", [{"lookahead": 0}, {"far_query": "true"}, {"true_query_layers": (0, 1, 2)}])
def test_a_true_query_makes_the_far_part_exact(options):
    """All blocks far and all but one chosen: only the far query can be wrong."""
    config = scout(4, budget=None, **options)
    rig = Rig(config, 0, workers=WORKERS)
    assert run(rig, [97]) < 1e-5


def test_a_useless_scout_makes_the_far_part_wrong_but_never_nan():
    rig = Rig(scout(4, budget=40), 0, workers=WORKERS)
    rig.add(97)
    qs, outs, _ = rig.step()
    assert rig.error(qs, outs) > 0.1
    assert all(torch.isfinite(out).all() for out in outs)


@pytest.mark.parametrize("on_miss", ["compute", "fetch", "drop"])
@pytest.mark.parametrize("lookahead", [0, 1, 2])
def test_every_rival_runs_and_counts_what_it_does(on_miss, lookahead):
    rig = Rig(scout(4, on_miss=on_miss, lookahead=lookahead, recall_interval=0), 6, workers=WORKERS)
    rig.add(97)
    total = None
    for _ in range(3):
        total = rig.step()[2] if total is None else total + rig.step()[2]
    assert total.far_blocks > 0
    assert (total.hidden_s + total.unhidden_s > 0) == (on_miss == "compute")
    assert (total.recalled_bytes > 0) == (on_miss == "fetch")


def test_fetching_attends_to_every_chosen_block():
    """With lookahead 0 the choice is the true query's, and fetched blocks are attended to like any other."""
    rig = Rig(scout(4, on_miss="fetch", lookahead=0, budget=24), 5, workers=WORKERS)
    rig.add(97)
    rig.step()
    for layer in range(3):
        held = rig.store.slots.content[layer, 0, :, :5]
        assert (held >= 0).all()
        assert all(len(set(row.tolist())) == 5 for row in held)


def test_roomy_sequences_attend_to_the_budget_only():
    exact, sparse = (Rig(scout(4, budget=budget), 60, workers=WORKERS) for budget in (None, 24))
    assert run(exact, [97], 1) < 1e-5
    assert run(sparse, [97], 1) > 1e-3
    errors = [run(Rig(scout(4, budget=24), quota, workers=WORKERS), [97], 1) for quota in (None, 60)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)


def test_recall_lowers_the_share_of_a_repeated_choice():
    """A query that stays the same wants the same blocks: recall must bring them in."""
    torch.manual_seed(1)
    shares = {}
    for interval in (0, 1):
        options = {"predictor": "oracle", "budget": 24, "recall_interval": interval, "max_cpu_share": None}
        rig = Rig(scout(4, **options), 8, seed=1, workers=WORKERS)
        rig.add(200)
        q = torch.randn(1, 2, 3, 16)
        for _ in range(8):
            attend = rig.begin()
            for layer in range(3):
                attend(layer, q, torch.zeros(1, 2, 16), torch.zeros(1, 2, 16), torch.zeros(1, 8))
            stats = rig.end()
        shares[interval] = stats.far_blocks / stats.chosen_blocks
    assert shares[0] > 0.2
    assert shares[1] < 0.1


def test_far_work_hides_behind_the_main_thread():
    """A slow far job is hidden when the main thread has as much to do, and waited for when it has not."""
    config = scout(4, budget=40)
    for busy_s, hidden in ((0.15, True), (0.0, False)):
        with Workers(2, delay_s=0.08) as slow:
            rig = Rig(config, 12, workers=slow)
            rig.add(97)
            parts = rig.attention.parts
            parts.far.transport._ops = NativeOps(WORKERS)  # what is not far stays fast
            for digests in parts.chooser.digests.kinds:
                digests.ops = NativeOps(WORKERS)
            _, _, stats = rig.step(between=lambda layer, s=busy_s: time.sleep(s))
        if hidden:
            assert stats.hidden_s > 0.1
        assert stats.unhidden_s > 0.06  # layer 0 has nothing to hide behind
        assert (stats.unhidden_s < 0.12) == hidden


def test_sources_of_scouts():
    assert source_layers(ScoutConfig().changed(lookahead=1, true_query_layers=(0, 1)), 4) == [0, 1, 1, 2]
    assert source_layers(ScoutConfig().changed(lookahead=4, true_query_layers=()), 6) == [0, 0, 0, 0, 0, 1]
    assert source_layers(ScoutConfig().changed(lookahead=0, true_query_layers=()), 3) == [0, 1, 2]
    assert source_layers(ScoutConfig().changed(predictor="oracle", true_query_layers=()), 3) == [0, 1, 2]
    for layer in (-1, 3):
        with pytest.raises(ConfigError, match=r"true_query_layers=.* names layers outside 0\.\.2"):
            source_layers(ScoutConfig().changed(true_query_layers=(0, layer)), 3)


def test_a_step_that_is_broken_off_leaves_nothing_to_the_next():
    rig = Rig(scout(4, budget=40), 4, workers=WORKERS)
    rig.add(150)
    q, k, x = torch.randn(1, 2, 3, 16), torch.zeros(1, 2, 16), torch.zeros(1, SHAPE.hidden_size)
    rig.begin()(0, q, k, k, x)
    assert not rig.begin()._calls  # what a scout had started for the second layer
