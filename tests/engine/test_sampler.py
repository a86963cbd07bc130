"""Sampling draws from the right distribution, repeatably."""

import torch

from scoutattention.config import SamplingParams
from scoutattention.engine.sampler import draw, draw_of, drawing_of


def draws(params: SamplingParams, logits: torch.Tensor, count: int = 2000, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    each = [draw_of(params, float(torch.rand((), generator=generator))) for _ in range(count)]
    tokens = draw(logits.expand(count, -1), torch.tensor(each).T, drawing_of(each))
    return torch.bincount(tokens, minlength=logits.numel()) / count


def test_temperature_zero_is_greedy():
    logits = torch.tensor([0.0, 3.0, 2.9])
    both = [SamplingParams(temperature=0), SamplingParams(temperature=9.0, top_p=0.01)]
    each = [draw_of(params, 0.99) for params in both]
    assert draw(logits.expand(2, -1), torch.tensor(each).T, drawing_of(each)).tolist() == [1, 1]


def test_draws_follow_the_softmax_at_the_temperature():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    for temperature in (0.5, 1.0, 2.0):
        share = draws(SamplingParams(temperature=temperature), logits)
        assert (share - (logits / temperature).softmax(0)).abs().max() < 0.04


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    share = draws(SamplingParams(temperature=1.0, top_p=0.7), logits)
    assert share[2:].sum() == 0
    assert abs(share[0] - 0.625) < 0.04
    assert draws(SamplingParams(temperature=1.0, top_p=0.01), logits, 50)[0] == 1


def test_a_seed_makes_draws_repeatable():
    logits, params = torch.randn(50), SamplingParams(temperature=1.0)
    one, two, other = (draws(params, logits, 20, seed) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
