"""Drawing tokens on the device, from logits and one random number of the host's for each token."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import SamplingParams

Draw = tuple[float, float, float]
"""How a token is drawn: temperature, top_p, and a random number in [0, 1). A temperature of 0 takes the likeliest."""


def next_draws(params: Sequence[SamplingParams], generators: Sequence[torch.Generator]) -> list[Draw]:
    """How the next token of each sequence is drawn; sequences of a temperature of 0 use up no random number."""
    return [
        (one.temperature, one.top_p, float(torch.rand((), generator=its)) if one.temperature else 0.0)
        for one, its in zip(params, generators, strict=True)
    ]


def sampled(draws: Sequence[Draw]) -> bool:
    """Whether any token is not just the likeliest."""
    return any(temperature > 0 for temperature, *_ in draws)


def draw(logits: Tensor, draws: Tensor) -> Tensor:
    """One token of each sequence, int64 [B]; only queues work.

    logits: float32 [B, vocab].   draws: float32 [3, B], see `Draw`.
    Tokens are ordered by their probability, the largest first; one is drawn from the fewest that reach top_p together.
    """
    temperature, top_p, chance = draws[..., None]
    probs, order = (logits / temperature.where(temperature > 0, 1)).softmax(-1).sort(descending=True)
    before = probs.cumsum(-1) - probs
    upto = probs.masked_fill(before >= top_p, 0).cumsum(-1)  # keeps the token that crosses top_p
    place = (upto <= chance * upto[:, -1:]).sum(-1, keepdim=True)
    last = (before < top_p).sum(-1, keepdim=True) - 1
    (token,) = torch.minimum(place, last).T
    drawn = order.gather(-1, token[:, None])[:, 0]
    return torch.where(draws[0] > 0, drawn, logits.argmax(-1))
