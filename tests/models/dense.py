"""Causal attention over a whole prompt, as plainly as it can be written."""

import torch


def causal(shape):
    """An `attend` for prompts: every token attends to itself and to all before it."""

    def attend(layer, q, k, v, x):
        scores = torch.einsum("thgd,shd->hgts", q, k).float() * shape.scale
        future = torch.ones(len(q), len(k), dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1).to(v.dtype)
        return torch.einsum("hgts,shd->thgd", weights, v)

    return attend


def prompt_logits(decoder, token_ids):
    """Logits after every token of a prompt: float32 [T, vocab]."""
    rope = decoder.rope(torch.arange(len(token_ids)), len(token_ids))
    return decoder.logits(decoder.forward(torch.tensor(token_ids), rope, causal(decoder.shape)))
