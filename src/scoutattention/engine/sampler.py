"""From logits to a token."""

import torch
from torch import Tensor

from ..config import SamplingParams


def sample(logits: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """Draw one token.   logits: float32 [vocab]."""
    if params.temperature == 0:
        return int(logits.argmax())
    logits = logits.cpu()  # where the generator is
    probs, order = (logits / params.temperature).softmax(-1).sort(descending=True)
    before = probs.cumsum(0) - probs
    probs = probs.masked_fill(before >= params.top_p, 0)  # keeps the token that crosses top_p
    return int(order[torch.multinomial(probs, 1, generator=generator)])
