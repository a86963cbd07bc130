"""What the method costs on a real model: the divergence from full attention, over teacher-forced steps of real text."""

import pytest

from scoutattention.config import EngineConfig, ScoutConfig
from scoutattention.eval.fidelity.ablation import ablation
from scoutattention.eval.fidelity.measure import Fidelity
from scoutattention.eval.fidelity.run import run
from scoutattention.eval.text import prose
from scoutattention.models.loader import load


def measured(names: tuple[str, ...], context: int, steps: int, budget: int) -> list[Fidelity]:
    """Configurations of the ablation on the demo model, at the beginning of Python's documentation."""
    model = load("smollm2")
    table = {variant.name: variant for variant in ablation(ScoutConfig(budget=budget), model.decoder.shape)}
    variants = [table[name] for name in names]
    results = run(model, EngineConfig(), [prose()], (context, steps), variants=variants, watch=lambda *_: None)
    return [item.fidelity for item in results]


def test_scout_on_a_real_model_stays_close_to_full_attention():
    literal, scout = measured(("literal", "all"), 700, 12, 192)
    assert 0 < scout.kl_mean <= 0.06
    assert literal.kl_mean > 2 * scout.kl_mean
    assert 0 < scout.cpu_share < 0.12 < literal.cpu_share
    assert literal.layers.cosine[1] < 0.6  # what the published design cannot predict
    assert all(cosine > 0.9 for cosine in literal.layers.cosine[3:])
    assert scout.layers.cosine[1] > 0.85  # what calibration makes of it
    assert literal.far_recall > 0.5
    assert all(0 <= w < 0.7 for w in literal.layers.w)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_at_full_size():
    """The set-up of the project's published figures: 7,936 tokens of context, budget 1,024, 128 steps."""
    (scout,) = measured(("all",), 7936, 128, 1024)
    assert scout.kl_mean <= 0.06
