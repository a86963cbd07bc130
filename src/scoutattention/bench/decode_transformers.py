"""Hugging Face transformers in the decode benchmark: its own attention by PyTorch's SDPA, its default cache."""

import torch
from transformers import AutoModelForCausalLM

from ..cache.pool import TORCH_DTYPES
from .decode_job import DecodeJob, Span


class TransformersDecoding:
    """Prompts are read one after the other, so that only one prompt's activations stand in memory; then one batch."""

    def __init__(self, job: DecodeJob) -> None:
        torch.set_num_threads(job.threads)
        torch.set_grad_enabled(False)
        self._prompts = torch.tensor(job.prompts)
        self._model = AutoModelForCausalLM.from_pretrained(
            job.directory, dtype=TORCH_DTYPES[job.dtype], attn_implementation="sdpa"
        )
        self._cache = None
        self._tokens: list[torch.Tensor] = []

    def read(self) -> None:
        """See `Decoding.read`."""
        self._forward(self._prompts)

    def step(self) -> None:
        """See `Decoding.step`."""
        self._forward(self._tokens[-1][:, None])

    def answers(self) -> list[list[int]]:
        """See `Decoding.answers`."""
        return torch.stack(self._tokens, 1).tolist()

    def traced_step(self) -> list[Span]:
        """See `Decoding.traced_step`."""
        return []

    def _forward(self, ids: torch.Tensor) -> None:
        out = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = out.past_key_values
        self._tokens.append(out.logits[:, -1].argmax(-1))
