"""Sequences in any rows of the cache: a batch in another order, or with gaps, gets the same logits."""

import torch

from scoutattention import ScoutConfig
from scoutattention.attention.prompt import trial

from .test_generate import far_llm

LENGTHS = (90, 61, 120)
SCOUT = ScoutConfig().changed(budget=40, block_size=8, correction_dims=8, recall_interval=2, min_scout_cosine=-1.0)


def logits_of(path, rows):
    """Of ten steps of the sequences in these rows, float32 [steps, B, vocab], in the order of the rows' numbers."""
    engine = far_llm(path, SCOUT, 6, 3).engine
    for row, length in enumerate(LENGTHS):
        engine.store.admit(row, engine.plan.blocks(200), 5)
        engine.runner.prefill(row, [(7 * i * i + row) % 97 for i in range(length)])
    corrected = engine.runner.attention.parts.predictor.left
    assert all(corrected[:, row].any() for row in rows), "each sequence has a correction of its own"
    made = []
    for step in range(10):
        tokens, places = [(step + row) % 97 for row in rows], [LENGTHS[row] + step for row in rows]
        logits, stats, _ = engine.runner.decode(tokens, places, rows)
        made.append(torch.stack([logits[rows.index(row)] for row in sorted(rows)]))
    assert stats.far_blocks > 0
    engine.close()
    return torch.stack(made)


def test_rows_in_another_order_and_with_gaps_get_the_same_logits(tiny_models, monkeypatch):
    monkeypatch.setattr(trial, "LEAST_FITTED", 50)
    path = str(tiny_models["qwen3"])
    every = logits_of(path, [0, 1, 2])
    torch.testing.assert_close(logits_of(path, [2, 0, 1]), every, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits_of(path, [2, 0]), every[:, [0, 2]], atol=1e-4, rtol=1e-4)
