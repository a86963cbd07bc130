"""Dummy weights: the shape that was asked for, and layers that can be predicted about as well as a real model's."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

from scoutattention.errors import ModelNotFoundError, UnsupportedModelError
from scoutattention.models.config import ModelConfig
from scoutattention.models.formats.dummy import dummy_decoder
from scoutattention.models.shapes.known import KNOWN_SHAPES, read_model, shape_config

CPU = torch.device("cpu")


BILLIONS = {
    "qwen3-0.6b": 0.596, "qwen3-1.7b": 1.72, "qwen3-4b": 4.02, "qwen3-8b": 8.19, "qwen3-14b": 14.77, "qwen3-32b": 32.76,
    "qwen2.5-0.5b": 0.494, "qwen2.5-1.5b": 1.54, "qwen2.5-7b": 7.62, "qwen2.5-14b": 14.77, "qwen2.5-32b": 32.76,
    "qwen2.5-72b": 72.71, "llama-3.2-1b": 1.236, "llama-3.2-3b": 3.21, "llama-3.1-8b": 8.03, "llama-3.1-70b": 70.55,
    "mistral-7b-v0.3": 7.25, "mistral-nemo-12b": 12.25, "mistral-small-24b": 23.57, "smollm2-135m": 0.1345,
    "smollm2-1.7b": 1.711,
}  # fmt: skip


def test_known_shapes_are_the_models():
    """The parameter counts are those that the models' pages give."""
    counts = {name: read_model(name) for name in KNOWN_SHAPES if name != "tiny"}
    billions = {name: model.shape.matrix_numbers(tied=model.tied) / 1e9 for name, model in counts.items()}
    assert billions == pytest.approx(BILLIONS, rel=3e-3)


@pytest.mark.parametrize("name", KNOWN_SHAPES)
def test_known_shapes_can_be_loaded(name):
    raw, model = shape_config(name), read_model(name)
    config = ModelConfig.from_hf(raw, raw["dtype"])
    assert config.shape == model.shape
    assert config.tie_word_embeddings == model.tied


@pytest.mark.parametrize(
    ("name", "kv_bytes"), [("qwen3-8b", 147456), ("llama-3.1-8b", 131072), ("qwen3-14b", 163840), ("tiny", 1024)]
)
def test_known_shapes_have_the_cache_of_their_models(name, kv_bytes):
    assert read_model(name).shape.kv_bytes_per_token == kv_bytes


def test_random_weights_are_not_quantised():
    raw = {**shape_config("tiny"), "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
    with pytest.raises(UnsupportedModelError, match=r"random weights are not quantised.*: take it out"):
        dummy_decoder(raw, 10, CPU)


def test_a_shape_can_be_any_config(tiny_models):
    raw = json.loads((Path(tiny_models["qwen3"]) / "config.json").read_text())
    decoder = dummy_decoder(shape_config(str(tiny_models["qwen3"] / "config.json")), 10_000, CPU)
    assert decoder.shape.num_layers == raw["num_hidden_layers"]
    assert decoder.shape.max_positions == 10_000, "even if the model has fewer"
    assert decoder.weights.layers[0].qk_norm is not None
    again = dummy_decoder(raw, 10, CPU)
    assert torch.equal(decoder.weights.head, again.weights.head)
    with pytest.raises(ModelNotFoundError, match="no model 'gpt-9' is known: give one of qwen3-0"):
        shape_config("gpt-9")
    with pytest.raises(ModelNotFoundError, match="'qwen3-8b' is the nearest; give one of"):
        shape_config("Qwen3_8b")


def test_scouts_are_as_right_as_a_real_models():
    raw = shape_config("tiny") | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}
    decoder = dummy_decoder(raw, 64, CPU)
    rope, cosines = decoder.rope(torch.arange(32)), []
    inputs: list[torch.Tensor] = []

    def attend(layer, q, k, v, x):
        if layer:
            cosines.append(cosine_similarity(decoder.project_query(layer, inputs[-1], rope), q, dim=-1).mean())
        inputs.append(x)
        return v.cumsum(0)[:, :, None].expand(q.shape) / torch.arange(1, 33)[:, None, None, None]

    logits = decoder.logits(decoder.forward(torch.arange(32), rope, attend))
    assert 0.95 < min(cosines) < max(cosines) < 0.998
    assert 0.5 < float(logits.std()) < 2
