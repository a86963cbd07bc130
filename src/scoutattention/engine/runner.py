"""Model and attention together: a prompt in, logits out; a batch of tokens in, logits out."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..attention.base import Attention, StepStats
from ..attention.prefill import PromptAttention, PromptLayer
from ..models.decoder import Decoder

Progress = Callable[[int, int], None]
"""progress(done, total), in tokens."""

Record = list[PromptLayer]
"""A prompt that was read, layer by layer."""


class Runner:
    """Runs the decoder on sequences that have a row in the store."""

    def __init__(self, decoder: Decoder, prompt_attention: PromptAttention, attention: Attention) -> None:
        self.decoder = decoder
        self._prompt_attention = prompt_attention
        self.attention = attention

    @torch.inference_mode()
    def prefill(
        self, row: int, token_ids: list[int], progress: Progress | None = None, record: Record | None = None
    ) -> Tensor:
        """Run a whole prompt, leaving its cache in `row`; returns the last position's logits, float32 [vocab].

        record: an empty one, to be filled for `replay`.
        """
        decoder, layers = self.decoder, self.decoder.shape.num_layers
        rope = decoder.rope(torch.arange(len(token_ids)))
        attend_prompt = self._prompt_attention.begin(row, rope, record)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
            out = attend_prompt(layer, q, k, v, x)
            if progress is not None:
                progress(len(token_ids) * (layer + 1) // layers, len(token_ids))
            return out

        hidden = decoder.forward(torch.tensor(token_ids), rope, attend)
        self._prompt_attention.finish(row, len(token_ids))
        return decoder.logits(hidden[-1:])[0]

    @torch.inference_mode()
    def replay(self, row: int, record: Record) -> None:
        """Leave in `row` the cache of a prompt that was recorded, perhaps with another configuration."""
        for layer, prompt in enumerate(record):
            self._prompt_attention.place(row, layer, prompt)
        self._prompt_attention.finish(row, record[0].k.shape[0])

    @torch.inference_mode()
    def decode(self, token_ids: list[int], positions: list[int]) -> tuple[Tensor, StepStats]:
        """Run one token of each sequence in rows 0, 1, ...; returns float32 [B, vocab] and what the step did."""
        decoder = self.decoder
        rope = decoder.rope(torch.tensor(positions))
        self.attention.plan(len(token_ids))
        attend = self.attention.begin(rope)
        logits = decoder.logits(decoder.forward(torch.tensor(token_ids), rope, attend))
        return logits, self.attention.end()
