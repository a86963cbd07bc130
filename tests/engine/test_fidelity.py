"""What the method costs on a real model: the divergence from full attention, over teacher-forced steps of real text."""

from pydoc_data.topics import topics

import pytest
import torch

from scoutattention import LLM, ScoutConfig
from scoutattention.attention.base import StepStats
from scoutattention.engine.force import teacher_forced

CONTEXT, STEPS, BUDGET = 1000, 24, 256


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    text = "\n".join(topics[name] for name in sorted(topics))
    llm = LLM("smollm2", max_num_seqs=1)
    return llm.tokenizer.encode(text)[4000 : 4000 + CONTEXT + STEPS]


def predictions(tokens: list[int], context: int, scout: ScoutConfig, **machine) -> tuple[torch.Tensor, StepStats]:
    """Log-probabilities of the next token after each fed one, [steps, vocab], and what the steps did."""
    llm = LLM("smollm2", scout=scout, max_num_seqs=1, **machine)
    results = list(teacher_forced(llm.engine, tokens, context))
    llm.close()
    logits = torch.stack([logits for logits, _ in results])
    return logits.log_softmax(-1), sum((step for _, step in results), start=StepStats())


def divergence(full: torch.Tensor, other: torch.Tensor) -> float:
    """Mean KL(full || other) over the steps."""
    return float((full.exp() * (full - other)).sum(-1).mean())


def test_scout_on_a_real_model_stays_close_to_full_attention(tokens):
    full, _ = predictions(tokens, CONTEXT, ScoutConfig(budget=None))
    literal, _ = predictions(
        tokens,
        CONTEXT,
        ScoutConfig(budget=BUDGET, true_query_layers=(), recall_interval=8),
        device_memory=f"{BUDGET * 45}KiB",  # as many slots as the budget has blocks; 45 KiB a token
    )
    scout, stats = predictions(tokens, CONTEXT, ScoutConfig(budget=BUDGET))
    assert 0 < divergence(full, scout) <= 0.06
    assert divergence(full, literal) > 2 * divergence(full, scout)
    assert 0 < stats.far_blocks < 0.12 * stats.chosen_blocks
    assert stats.recalled_bytes > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_at_full_size():
    """The set-up of the project's published figures: 7,936 tokens of context, budget 1,024, 128 steps."""
    text = "\n".join(topics[name] for name in sorted(topics))
    tokens = LLM("smollm2", max_num_seqs=1).tokenizer.encode(text)[4000 : 4000 + 7936 + 128]
    full, _ = predictions(tokens, 7936, ScoutConfig(budget=None))
    scout, _ = predictions(tokens, 7936, ScoutConfig(budget=1024))
    assert divergence(full, scout) <= 0.06
