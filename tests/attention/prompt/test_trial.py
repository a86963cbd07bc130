"""Scouts are tried on the prompt: what a correction can mend it mends, and what stays unpredictable is not trusted."""

import pytest
import torch

from scoutattention.attention.predict import CalibratedPredictor, PlainPredictor
from scoutattention.attention.prompt.correction import PRIOR, Correction, Problem, fit_low_rank
from scoutattention.attention.prompt.trial import (
    HELD_OUT,
    LEAST_FITTED,
    TRIED,
    ScoutTrial,
    TrialSample,
    sample_every,
)
from scoutattention.config import ScoutConfig
from scoutattention.kernels import reference_rows
from scoutattention.kernels.plain import PlainOps
from scoutattention.runtime.workers import Workers
from scoutattention.types import Rope

from ..rig import Rig
from ..test_invariants import scout

WORKERS, OPS = Workers(2), PlainOps(torch.device("cpu"))
E, DIMS = 24, 6


class LinearModel:
    """Queries are the input itself, as one KV head of 3 query heads of dim 8."""

    def normed_input(self, layer, x):
        return x

    def query_weight(self, layer):
        return torch.eye(E)

    def project_query(self, layer, x, rope, adjust=None):
        z = self.normed_input(layer, x)
        return (z if adjust is None else adjust(z)).unflatten(-1, (1, 3, 8))

    def project_corrected(self, layer, x, rope, by):
        return self.project_query(layer, x, rope, lambda z: reference_rows.corrected(z, by, reference_rows.linear))


def sample(x: torch.Tensor) -> TrialSample:
    return TrialSample(x, LinearModel().project_query(0, x, None), Rope(x[:, :0], x[:, :0]))


def make_trial(stored: Correction | None = None, **options) -> tuple[ScoutTrial, CalibratedPredictor]:
    own = torch.zeros(2, 3, 2, E, DIMS).unbind(0)
    calibrated = CalibratedPredictor(LinearModel(), own, stored)
    config = ScoutConfig().changed(correction_dims=DIMS, **options)
    return ScoutTrial(config, 3, LinearModel(), calibrated, OPS), calibrated


def test_a_low_rank_change_is_recovered():
    torch.manual_seed(0)
    z = torch.randn(4000, E)
    planted = torch.randn(E, 4) @ torch.randn(4, E)
    left, right = fit_low_rank(Problem(z, z @ planted, torch.randn(E, E)), 4, OPS)
    assert left.shape == right.shape == (E, 4)
    assert (left @ right.T - planted).norm() < 0.1 * planted.norm()  # the prior holds it back


def test_rank_goes_to_the_directions_that_move_queries():
    torch.manual_seed(0)
    z, change, weight = torch.randn(30_000, E), torch.randn(E, E), torch.randn(E, E)
    change[:, 0] *= 10  # the most there is to correct, and nothing that the queries see
    weight[:, 0] = 0
    queries = z @ change @ weight.T
    error = (fit_low_rank(Problem(z, z @ change, weight), DIMS, OPS).apply(z) - z) @ weight.T - queries
    least = torch.linalg.svdvals(queries)[DIMS:].norm()
    assert least <= error.norm() < 1.05 * least


@pytest.mark.parametrize("count", [E // 2, 3 * E])
def test_of_full_rank_it_is_ridge_regression(count):
    """However many positions there are: with fewer than channels, positions are solved for."""
    torch.manual_seed(0)
    z, change = torch.randn(2, count, E)
    gram = z.T @ z + PRIOR * z.square().mean() * torch.eye(E)
    left, right = fit_low_rank(Problem(z, change, torch.randn(E, E)), E, OPS)
    torch.testing.assert_close(left @ right.T, torch.linalg.solve(gram, z.T @ change), rtol=1e-3, atol=1e-3)


def test_rank_is_at_most_the_sizes_of_inputs_and_queries():
    z = torch.randn(50, 4)
    for queries, rank in ((8, 4), (3, 3)):
        assert fit_low_rank(Problem(z, z, torch.randn(queries, 4)), 6, OPS).left.shape == (4, rank)


def test_little_evidence_changes_little():
    torch.manual_seed(0)
    change, weight = torch.randn(E, E), torch.eye(E)
    norms = []
    for count in (30, 300, 3000):
        z = torch.randn(count, E)
        fitted = fit_low_rank(Problem(z, z @ change, weight), E, OPS)
        norms.append((fitted.left @ fitted.right.T).norm() / change.norm())
    assert norms[0] < 0.3
    assert norms == sorted(norms)
    assert norms[2] > 0.8


def test_a_predictable_change_is_corrected_for_the_row_alone():
    torch.manual_seed(0)
    first = torch.randn(2000, E)
    turn = torch.eye(E) + 0.5 * torch.randn(E, 5) @ torch.randn(5, E)
    second = first @ turn
    trial, calibrated = make_trial()
    assert float(trial.cosines(1, 0, [sample(first)])) == 1.0
    cosine = trial.cosines(1, 1, [sample(second)])
    plain = ScoutTrial(ScoutConfig(), 3, LinearModel(), None, OPS)
    plain.cosines(1, 0, [sample(first)])
    assert cosine > 0.95
    assert plain.cosines(1, 1, [sample(second)]) < 0.8
    assert (calibrated.left[:, 0] == 0).all()
    fresh = torch.randn(2, E)
    scouts = calibrated.predict(1, fresh, None, slice(0, len(fresh)))
    true = sample(fresh @ turn).q
    aside = torch.cosine_similarity(
        PlainPredictor(LinearModel()).predict(1, fresh, None, slice(0, len(fresh))), true, dim=-1
    )
    assert torch.cosine_similarity(scouts[1], true[1], dim=-1).min() > 0.9
    assert torch.equal(scouts[0], PlainPredictor(LinearModel()).predict(1, fresh, None, slice(0, len(fresh)))[0])
    assert aside.mean() < 0.8


def test_what_does_not_help_is_not_kept():
    torch.manual_seed(0)
    trial, calibrated = make_trial()
    x = torch.randn(2000, E)
    trial.cosines(0, 0, [sample(x)])
    assert float(trial.cosines(0, 1, [sample(x)])) == pytest.approx(1)
    assert (calibrated.left == 0).all()


def test_short_prompts_are_not_fitted_to_and_old_fits_are_forgotten():
    torch.manual_seed(0)
    first, turn = torch.randn(2000, E), torch.randn(E, E)
    trial, calibrated = make_trial()
    for count in (2000, LEAST_FITTED - 1):
        trial.cosines(0, 0, [sample(first[:count])])
        trial.cosines(0, 1, [sample(first[:count] @ turn)])
        assert (calibrated.left[1, 0] != 0).any() == (count == 2000)


def test_a_stored_correction_is_used_where_it_helps_and_the_prompt_adds_what_it_leaves():
    torch.manual_seed(0)
    stored, rest = (Correction(torch.randn(E, rank), 0.2 * torch.randn(E, rank)) for rank in (E, 4))
    everywhere = Correction(*(torch.stack([tensor] * 3) for tensor in stored))
    first, fresh = torch.randn(2000, E), torch.randn(1, E)
    cosines = {}
    for name, true, corrections in (
        ("both", lambda z: stored.joined(rest).apply(z), everywhere),
        ("prompt", lambda z: stored.joined(rest).apply(z), None),
        ("harmful", rest.apply, everywhere),
    ):
        trial, calibrated = make_trial(corrections)
        trial.cosines(0, 0, [sample(first)])
        cosines[name] = trial.cosines(0, 1, [sample(true(first))])
        assert calibrated.uses_stored[1, 0] == (name == "both")
        own = Correction(calibrated.left[1, 0], calibrated.right[1, 0])
        expected = (own.joined(stored) if name == "both" else own).apply(fresh)
        assert torch.allclose(calibrated.predict(1, fresh, None, slice(0, len(fresh))), sample(expected).q, atol=1e-4)
    assert min(cosines["both"], cosines["harmful"]) > 0.98
    assert cosines["prompt"] < 0.9


def test_a_prompt_too_short_to_fit_to_has_the_stored_correction():
    torch.manual_seed(0)
    stored = Correction(torch.randn(3, E, E), 0.2 * torch.randn(3, E, E))
    first = torch.randn(LEAST_FITTED - 1, E)
    trial, calibrated = make_trial(stored)
    trial.cosines(1, 0, [sample(first)])
    assert float(trial.cosines(1, 1, [sample(stored.of(1).apply(first))])) == pytest.approx(1)
    assert calibrated.uses_stored[:, 1].tolist() == [False, True, False]
    assert not calibrated.uses_stored[:, 0].any()
    assert (calibrated.left == 0).all()


def test_numbers_that_are_not_finite_are_not_trusted():
    first = torch.randn(2000, E)
    broken = first.clone()
    broken[5] = torch.nan  # fitted to
    broken[HELD_OUT] = torch.nan  # judged by
    trial, calibrated = make_trial()
    trial.cosines(0, 0, [sample(first)])
    assert not trial.cosines(0, 1, [sample(broken)]) >= 0
    assert (calibrated.left == 0).all()


@pytest.mark.parametrize("count", [LEAST_FITTED, 2000])
def test_inputs_of_which_none_is_finite_change_nothing(count):
    trial, calibrated = make_trial()
    first, broken = torch.randn(count, E), torch.full((count, E), torch.nan)
    trial.cosines(0, 0, [sample(broken)])
    assert trial.cosines(0, 1, [sample(first)]).isnan()
    assert trial.cosines(0, 2, [sample(broken)]).isnan()
    assert (calibrated.left == 0).all()
    assert not fit_low_rank(Problem(torch.zeros(count, E), first, torch.eye(E)), DIMS, OPS).left.any()
    assert fit_low_rank(Problem(first, torch.zeros(count, E), torch.eye(E)), DIMS, OPS).apply(first).equal(first)


def test_inputs_are_kept_only_as_long_as_a_later_layer_needs_them():
    x = torch.randn(100, E)
    trial = ScoutTrial(ScoutConfig(lookahead=2), 5, LinearModel(), None, OPS)
    kept = []
    for layer in range(5):
        trial.cosines(0, layer, [sample(x)])
        kept.append(sorted(layer for row, layer in trial._inputs))
    assert kept == [[0], [0, 1], [1, 2], [2], []]


def test_prompts_take_turns_layer_by_layer():
    prompts = [torch.randn(100, E), torch.randn(100, E)]
    together, apart = (ScoutTrial(ScoutConfig(), 3, LinearModel(), None, OPS) for _ in range(2))
    turns = [[together.cosines(row, layer, [sample(x + layer)]) for row, x in enumerate(prompts)] for layer in range(3)]
    alone = [[apart.cosines(row, layer, [sample(x + layer)]) for layer in range(3)] for row, x in enumerate(prompts)]
    assert torch.equal(torch.tensor(turns).T, torch.tensor(alone))


def test_inputs_that_are_not_finite_are_told_of(caplog):
    rig = Rig(scout(4, true_query_layers=None), 3, workers=WORKERS)
    rig.store.admit(0, 20, 3)
    attend = rig.prompt.begin(0, Rope(torch.zeros(20, 0), torch.zeros(20, 0)))
    q, k = torch.full((20, 2, 3, 16), torch.nan), torch.randn(20, 2, 16)
    for layer in range(3):
        attend(layer, q if layer == 2 else torch.randn_like(q), k, k, torch.randn(20, 8))
    rig.prompt.finish(0, 20)
    assert [record.message[:7] for record in caplog.records] == ["layer 2"]
    assert not rig.attention.trusted[2, 0]


def test_layers_that_cannot_be_predicted_use_the_true_query():
    """The rig's model predicts nothing, so trying it must end in the very steps of looking no layers ahead."""
    results = []
    for options in ({"true_query_layers": None}, {"lookahead": 0}, {}):
        rig = Rig(scout(4, budget=40, **options), 12, seed=3, workers=WORKERS)
        rig.add(97)
        torch.manual_seed(4)
        results.append(torch.stack(rig.step()[1]))
        trusted = rig.attention.trusted[:, 0].tolist()
        assert trusted == ([True, False, False] if options == {"true_query_layers": None} else [True] * 3)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_trusting_follows_the_row():
    rig = Rig(scout(4), 3, workers=WORKERS)
    rig.add(20)
    rig.add(20)
    kept = torch.zeros(3, 4, dtype=torch.int64)
    rig.store.follow(kept, fresh=torch.tensor([7, 8, 9]))
    kept[:, :2] = torch.arange(6).view(3, 2)
    rig.attention.trusted[1, 1] = False
    rig.store.release(0)
    rig.store.move(1, 0)
    assert rig.attention.trusted[:, 0].tolist() == [True, False, True]
    assert kept[:, 0].tolist() == [1, 3, 5]
    rig.store.release(0)
    rig.store.admit(0, 1, 0)
    assert kept[:, 0].tolist() == [7, 8, 9]
    assert rig.attention.trusted[:, 0].all()


def test_positions_are_spread_over_the_prompt():
    for tokens, count in (
        (1, 1),
        (100, 100),
        (2048, 2048),
        (8000, 2000),
        (16_000, 4000),
        (32_768, 4096),
        (65_536, 4096),
    ):
        assert len(range(0, tokens, sample_every(tokens))) == count
    assert max(len(range(0, tokens, sample_every(tokens))) for tokens in range(1, 40_000, 7)) <= TRIED[1]
