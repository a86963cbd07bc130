"""Model and attention together: a prompt in, logits out; a batch of tokens in, logits out."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..attention.prompt.prefill import PromptAttention, PromptLayer
from ..attention.step import Attention, Step, StepStats
from ..models.decoder import Decoder
from ..runtime.graphs import CudaGraphs, Graphs

Progress = Callable[[int, int], None]
"""progress(done, total), in tokens."""

Record = list[PromptLayer]
"""A prompt that was read, layer by layer."""


class Runner:
    """Runs the decoder on sequences that have a row in the store."""

    def __init__(
        self, decoder: Decoder, prompt_attention: PromptAttention, attention: Attention[Any], *, graph_rows: int = 0
    ) -> None:
        """graph_rows: sequences that steps captured as graphs have at most; 0 captures none."""
        self.decoder = decoder
        self._graphs = Graphs(graph_rows, decoder.device, CudaGraphs()) if graph_rows else None
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
        rope = decoder.rope(torch.arange(len(token_ids), device=decoder.device))
        attend_prompt = self._prompt_attention.begin(row, rope, record)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
            out = attend_prompt(layer, q, k, v, x)
            if progress is not None:
                progress(len(token_ids) * (layer + 1) // layers, len(token_ids))
            return out

        hidden = decoder.forward(torch.tensor(token_ids, device=decoder.device), rope, attend)
        self._prompt_attention.finish(row, len(token_ids))
        return decoder.logits(hidden[-1:])[0]

    @torch.inference_mode()
    def replay(self, row: int, record: Record) -> None:
        """Leave in `row` the cache of a prompt that was recorded, perhaps with another configuration."""
        for layer, prompt in enumerate(record):
            self._prompt_attention.place(row, layer, prompt)
        self._prompt_attention.finish(row, record[0].k.shape[0])

    @torch.inference_mode()
    def decode(
        self, token_ids: list[int], positions: list[int], rows: Sequence[int] | None = None
    ) -> tuple[Tensor, StepStats]:
        """Run one token of each sequence; returns logits, float32 [B, vocab], and what the step did.

        rows: of the sequences in the cache's tables; None is 0, 1, ...
        """
        step = self.attention.prepare(range(len(token_ids)) if rows is None else rows)

        def run(tokens: Tensor, positions: Tensor) -> Tensor:
            return self._run(step, tokens, positions)

        if self._graphs is not None and step.key is not None:
            logits = self._graphs.run(step.key, run, token_ids, positions)
            self.decoder.ranks.settle()
        else:
            tokens, places = torch.tensor([token_ids, positions], device=self.decoder.device)
            logits = run(tokens, places)
        return logits, self.attention.end(step)

    def close(self) -> None:
        """Let go of captured steps, which hold sums of ranks."""
        self._graphs = None

    def _run(self, step: Step, tokens: Tensor, positions: Tensor) -> Tensor:
        """The logits of tokens at positions, int64 [B] each, of a step that was prepared."""
        rope = self.decoder.rope(positions)
        return self.decoder.logits(self.decoder.forward(tokens, rope, self.attention.begin(step, rope)))
