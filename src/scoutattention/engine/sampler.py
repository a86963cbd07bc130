"""From logits to a token."""

import torch
from torch import Tensor

from ..config import SamplingParams


def draw(logits: Tensor, params: list[SamplingParams], generators: list[torch.Generator]) -> list[int]:
    """Draw one token of each sequence.   logits: float32 [B, vocab], on any device."""
    likeliest = logits.argmax(-1).tolist()
    every = zip(likeliest, logits, params, generators, strict=True)
    return [best if one.temperature == 0 else _sample(row.cpu(), one, its) for best, row, one, its in every]


def _sample(logits: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    probs, order = (logits / params.temperature).softmax(-1).sort(descending=True)
    before = probs.cumsum(0) - probs
    probs = probs.masked_fill(before >= params.top_p, 0)  # keeps the token that crosses top_p
    return int(order[torch.multinomial(probs, 1, generator=generator)])
