"""Stretched contexts in GGUF files, against the logits of transformers, beyond the original length as well."""

import math

import pytest
import torch

from scoutattention.models.loader import load

from .. import families
from ..dense import prompt_logits
from .gguf_files import write

PROMPT = [(37 * i + 11) % 250 for i in range(200)]
SHORT, LONG = [1.0 + 0.1 * i for i in range(8)], [1.0 + 0.7 * i for i in range(8)]
ORIGINAL = {"original_max_position_embeddings": 64, "rope_theta": 10_000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, **ORIGINAL}
LONGROPE = {"rope_type": "longrope", "factor": 1.0, "short_factor": SHORT, "long_factor": LONG, **ORIGINAL}

KIND, LENGTH = "ARCH.rope.scaling.type", {"ARCH.rope.scaling.original_context_length": 64}
YARN_FIELDS = {KIND: "yarn", "ARCH.rope.scaling.factor": 4.0, **LENGTH}
BETAS = {"ARCH.rope.scaling.yarn_beta_fast": 16.0, "ARCH.rope.scaling.yarn_beta_slow": 2.0}
HALF = {"ARCH.rope.scaling.attn_factor": 0.5}
TENSORS = {"rope_factors_short.weight": SHORT, "rope_factors_long.weight": LONG}


@pytest.mark.parametrize(
    ("family", "rope", "fields", "tensors"),
    [
        ("llama", YARN, YARN_FIELDS, {}),
        ("qwen2", YARN, YARN_FIELDS, {}),
        ("qwen3", YARN, YARN_FIELDS, {}),
        ("llama", YARN | {"beta_fast": 16.0, "beta_slow": 2.0}, YARN_FIELDS | BETAS, {}),
        ("llama", YARN | {"attention_factor": 0.5 * (0.1 * math.log(4.0) + 1.0)}, YARN_FIELDS | HALF, {}),
        ("llama", {"rope_type": "linear", "factor": 4.0} | ORIGINAL, {"ARCH.rope.scaling.factor": 4.0}, {}),
        ("llama", LONGROPE | {"attention_factor": 0.5}, {KIND: "longrope", **LENGTH, **HALF}, TENSORS),
        ("llama", LONGROPE | {"attention_factor": 1.0, "short_factor": LONG}, {}, {"rope_freqs.weight": LONG}),
    ],
    ids=["yarn", "yarn-qwen2", "yarn-qwen3", "yarn-betas", "yarn-attention", "linear", "longrope", "divisors"],
)
def test_a_stretched_context_is_the_models(family, rope, fields, tensors, tmp_path):
    model = families.make(family, rope_parameters=rope)
    loaded = load(str(write(tmp_path / "tiny.gguf", model, tensors=tensors, **fields)))
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(prompt_logits(loaded.decoder, PROMPT), expected, atol=1e-4, rtol=0)
