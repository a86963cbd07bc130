"""Dummy weights: the shape that was asked for, and layers that can be predicted about as well as a real model's."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

from scoutattention.errors import ModelNotFoundError, UnsupportedModelError
from scoutattention.models.config import ModelConfig
from scoutattention.models.formats.dummy import dummy_decoder, shape_config
from scoutattention.models.formats.known_shapes import KNOWN_SHAPES

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "billions", "kv_bytes"),
    [("qwen3-8b", 8.19, 147456), ("llama-3.1-8b", 8.03, 131072), ("qwen3-14b", 14.77, 163840), ("tiny", 0.0, 1024)],
)
def test_known_shapes_are_the_models(name, billions, kv_bytes):
    """The parameter counts are those that the models' pages give."""
    raw = shape_config(name)
    config = ModelConfig.from_hf(raw, raw["dtype"])
    shape, hidden = config.shape, config.shape.hidden_size
    attention = hidden * shape.head_dim * 2 * (shape.num_query_heads + shape.num_kv_heads)
    layer = attention + 3 * hidden * shape.intermediate_size
    assert (2 * shape.vocab_size * hidden + shape.num_layers * layer) / 1e9 == pytest.approx(billions, abs=0.01)
    assert shape.kv_bytes_per_token == kv_bytes
    assert set(KNOWN_SHAPES) == {"qwen3-8b", "qwen3-14b", "llama-3.1-8b", "tiny"}


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
    with pytest.raises(ModelNotFoundError, match="no shape 'gpt-9': give one of qwen3-8b"):
        shape_config("gpt-9")


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
