"""Hugging Face transformers in the decode benchmark: with SDPA and either of its caches, or with ScoutAttention."""

import atexit
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Cache, DynamicCache, StaticCache
from transformers.utils import logging
from typing_extensions import override

from ... import scout
from ...cache.pool import TORCH_DTYPES
from ...models.loader import load, open_files
from ..common.transformers_model import cache_argument, make_model
from .job import DecodeJob, Decoding, Far, Setup


class TransformersDecoding(Decoding):
    """All prompts, which are of one length, are one batch. The cache is the one that `generate` takes, and grows."""

    def __init__(self, job: DecodeJob) -> None:
        self._job = job
        torch.set_num_threads(job.threads)
        torch.set_grad_enabled(False)
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self._prompts = torch.tensor(job.prompts)
        self._model = _model(job)
        self._cache = cache_argument(self._model, self._make_cache(job))
        self._tokens: list[torch.Tensor] = []

    @override
    def setup(self) -> Setup:
        return Setup(self._job.dtype, self._job.dtype)

    @override
    def read(self) -> None:
        self._forward(self._prompts)

    @override
    def step(self) -> Far | None:
        self._forward(self._tokens[-1][:, None])
        return None

    @override
    def answers(self) -> list[list[int]]:
        return torch.stack(self._tokens, 1).tolist()

    def _make_cache(self, job: DecodeJob) -> Cache:
        return DynamicCache(config=self._model.config)

    def _forward(self, ids: torch.Tensor) -> None:
        out = self._model(input_ids=ids, use_cache=True, logits_to_keep=1, **self._cache)
        self._tokens.append(out.logits[:, -1].argmax(-1))


def _model(job: DecodeJob) -> Any:  # noqa: ANN401  # of no one type
    if job.gguf is None:
        return AutoModelForCausalLM.from_pretrained(
            job.model, dtype=TORCH_DTYPES[job.dtype], attn_implementation="sdpa"
        )
    decoder = load(str(job.gguf), job.dtype, in_place=False).decoder
    return make_model(decoder, open_files(job.gguf).config)


class StaticTransformersDecoding(TransformersDecoding):
    """With a cache that has its full length from the start."""

    def _make_cache(self, job: DecodeJob) -> Cache:
        return StaticCache(self._model.config, max_cache_len=job.max_len)


class ScoutTransformersDecoding(TransformersDecoding):
    """With ScoutAttention put into the model, for as long as the process lives."""

    @override
    def _make_cache(self, job: DecodeJob) -> Cache:
        method = {name: getattr(job.scout, name) for name in ("budget", "lookahead", "max_cpu_share")}
        session = scout(self._model, **method, workers=job.threads).__enter__()
        atexit.register(session.__exit__, None, None, None)
        return session.new_cache(job.max_len)
