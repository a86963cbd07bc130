"""Calibrating on text: what is fitted helps on other text, the engine finds it, what cannot be fitted is refused."""

import pytest
import torch

from scoutattention import LLM, CalibrationError, ScoutConfig
from scoutattention.attention.prompt.correction import fit_low_rank
from scoutattention.engine import calibrate as module
from scoutattention.engine.calibrate import LEAST_WINDOWS, WINDOW, calibrate
from scoutattention.engine.engine import PROMPTS_OWN
from scoutattention.models.calibration import default_path, store
from scoutattention.models.loader import load

TOKENS = [(7 * i * i + 3 * i + i // 50) % 251 for i in range(LEAST_WINDOWS * WINDOW + 10)]


def quiet(done: int, total: int) -> None:
    pass


@pytest.mark.parametrize("family", ["llama", "llama-bias", "qwen2", "qwen3"])
def test_corrections_help_on_text_that_was_not_fitted_to(tiny_models, family):
    decoder = load(str(tiny_models[family])).decoder
    told = []
    one, two = calibrate(decoder, TOKENS, [1, 2], None, lambda *progress: told.append(progress))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert (one.lookahead, two.lookahead) == (1, 2)
    for fit in (one, two):
        assert fit.corrections.left.shape == fit.corrections.right.shape == (3, 64, 64)
        assert (fit.corrections.left[0] == 0).all()  # nothing comes before layer 0
        assert [score.layer for score in fit.scores] == [1, 2]
        for score in fit.scores:
            assert score.kept
            assert score.calibrated.cosine > score.plain.cosine + 0.05
            assert score.calibrated.error < score.plain.error
    assert torch.equal(one.corrections.left[1], two.corrections.left[1])  # both are made from layer 0
    assert two.scores[1].calibrated.cosine < one.scores[1].calibrated.cosine


def test_windows_that_judge_are_not_fitted_to(tiny_models, monkeypatch):
    fitted = []

    def fit(problem, dims, ops):
        fitted.append(len(problem.z))
        return fit_low_rank(problem, dims, ops)

    monkeypatch.setattr(module, "fit_low_rank", fit)
    calibrate(load(str(tiny_models["llama"])).decoder, TOKENS, [1], 8, quiet)
    assert fitted == [(LEAST_WINDOWS - 1) * WINDOW] * 2


def test_more_dims_are_closer(tiny_models):
    decoder = load(str(tiny_models["llama"])).decoder
    errors = []
    for dims in (4, 16, 1000):
        (fit,) = calibrate(decoder, TOKENS, [1], dims, quiet)
        assert fit.corrections.left.shape[-1] == min(dims, 64)
        errors.append([score.calibrated.error for score in fit.scores])
    for layer in range(2):
        assert errors[0][layer] > errors[1][layer] > errors[2][layer]


def test_the_engine_finds_what_was_stored(stored_here, tiny_models):
    path = str(tiny_models["qwen3"])
    decoder = load(path).decoder
    (fit,) = calibrate(decoder, TOKENS, [1], 32, quiet)
    store(default_path(decoder, 1), decoder, 1, fit.corrections)
    small = {"budget": 48, "block_size": 8, "min_scout_cosine": -1.0}
    for options, used in (({}, True), ({"calibration": None}, False), ({"lookahead": 2}, False)):
        llm = LLM(path, scout=ScoutConfig().changed(**small, **options), device_memory="slots", max_num_seqs=1)
        assert llm.engine.calibration.startswith(default_path(decoder, 1).name if used else PROMPTS_OWN)
        assert llm.generate([TOKENS[:200]])[0].token_ids
        llm.close()
    llm = LLM(path, scout=ScoutConfig().changed(**small, predictor="plain"), device_memory="slots", max_num_seqs=1)
    assert llm.engine.calibration == "none"
    llm.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tokens", [12, 200])
def test_what_was_stored_serves_every_dtype_and_length(stored_here, tiny_models, dtype, tokens):
    """Few rows are computed in float32 whatever the weights are."""
    path = str(tiny_models["qwen3"])
    decoder = load(path, dtype).decoder
    (fit,) = calibrate(decoder, TOKENS, [1], 32, quiet)
    store(default_path(decoder, 1), decoder, 1, fit.corrections)
    scout = ScoutConfig().changed(budget=48, block_size=8, min_scout_cosine=-1.0)
    llm = LLM(path, scout=scout, device_memory="slots", dtype=dtype, max_num_seqs=1)
    assert llm.engine.calibration not in (PROMPTS_OWN, "none")
    assert llm.generate([TOKENS[:tokens]])[0].token_ids
    llm.close()


def test_too_little_text_is_refused(tiny_models):
    decoder = load(str(tiny_models["llama"])).decoder
    with pytest.raises(CalibrationError, match=f"has 4095 tokens, and a calibration needs {LEAST_WINDOWS * WINDOW}"):
        calibrate(decoder, TOKENS[:4095], [1], 8, quiet)


def test_a_model_whose_numbers_are_not_finite_is_refused(tiny_models):
    decoder = load(str(tiny_models["llama"])).decoder
    decoder.weights.layers[1].down[0, 0] = torch.nan
    with pytest.raises(CalibrationError, match="layer 2 are not finite"):
        calibrate(decoder, TOKENS, [1], 8, quiet)
