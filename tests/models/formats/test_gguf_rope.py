import math

import pytest
import torch

from scoutattention.errors import ModelFileError, UnsupportedModelError
from scoutattention.models.config import ModelConfig
from scoutattention.models.rope import RopeConfig, inverse_frequencies

from .test_gguf_config import read

YARN = {
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 4.0,
    "llama.rope.scaling.original_context_length": 128,
}


def scaling(changes=(), **tensors):
    return read(changes, **tensors)["rope_scaling"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, None),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, ("linear", 4.0)),
        ({"llama.rope.scaling.factor": 4.0}, ("linear", 4.0)),
        ({"llama.rope.scale_linear": 2.0}, ("linear", 2.0)),
        ({"llama.rope.scale_linear": 2.0, "llama.rope.scaling.factor": 4.0}, ("linear", 4.0)),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scale_linear": 2.0}, ("linear", 2.0)),
        ({"llama.rope.scaling.factor": 1.0}, None),
        ({"llama.rope.scaling.factor": 0.0}, None),
    ],
)
def test_linear_scaling(changes, expected):
    assert scaling(changes) == (expected and {"rope_type": expected[0], "factor": expected[1]})


def test_yarn_is_said_as_config_json_says_it():
    expected = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }
    assert scaling(YARN) == expected
    without = {key: value for key, value in YARN.items() if "original" not in key}
    assert scaling(without) == expected | {"original_max_position_embeddings": 512}
    betas = {"llama.rope.scaling.yarn_beta_fast": 16.0, "llama.rope.scaling.yarn_beta_slow": 2.0}
    assert scaling(YARN | betas) == expected | {"beta_fast": 16.0, "beta_slow": 2.0}


def test_yarns_attention_factor_multiplies_the_usual_one():
    usual = 0.1 * math.log(4.0) + 1.0
    assert scaling(YARN | {"llama.rope.scaling.attn_factor": 0.5})["attention_factor"] == pytest.approx(0.5 * usual)
    assert "attention_factor" not in scaling(YARN | {"llama.rope.scaling.yarn_attn_factor": usual})


def test_longrope_has_factors_for_short_and_for_long_texts():
    short, long = torch.linspace(1.0, 2.0, 8), torch.linspace(1.0, 9.0, 8)
    changes = {
        "llama.rope.scaling.type": "longrope",
        "llama.rope.scaling.attn_factor": 1.25,
        "llama.rope.scaling.original_context_length": 128,
    }
    assert scaling(changes, rope_factors_short=short, rope_factors_long=long) == {
        "rope_type": "longrope",
        "short_factor": short.tolist(),
        "long_factor": long.tolist(),
        "original_max_position_embeddings": 128,
        "attention_factor": 1.25,
    }


def test_llama3_scaling_is_known_by_its_factors():
    scaled = RopeConfig(10_000.0, "llama3", 32.0)
    factors = inverse_frequencies(RopeConfig(10_000.0), 16) / inverse_frequencies(scaled, 16)
    assert ModelConfig.from_hf(read(rope_freqs=factors), "float32").rope == scaled


def test_other_factors_hold_for_all_lengths():
    factors = torch.linspace(1.0, 4.0, 8)
    found = scaling(rope_freqs=factors)
    assert found["short_factor"] == found["long_factor"] == factors.tolist()
    assert found["attention_factor"] == 1.0


@pytest.mark.parametrize(
    ("changes", "tensors", "error", "named"),
    [
        ({"llama.rope.dimension_count": 8}, {}, UnsupportedModelError, "dimension_count=8.*only 16"),
        ({"llama.rope.scaling.type": "ntk"}, {}, UnsupportedModelError, "type 'ntk'"),
        ({"llama.rope.scaling.type": 3}, {}, ModelFileError, "scaling.type is 3"),
        ({"llama.rope.scaling.type": "yarn"}, {}, ModelFileError, "does not give llama.rope.scaling.factor"),
        ({"llama.rope.scaling.factor": -2.0}, {}, ModelFileError, "not above 0"),
        ({"llama.rope.scaling.alpha": 2.0}, {}, UnsupportedModelError, "scaling.alpha=2.0"),
        ({"llama.rope.scaling.attn_factor": 2.0}, {}, UnsupportedModelError, "attn_factor=2.0"),
        (YARN | {"llama.rope.scaling.yarn_log_multiplier": 0.1}, {}, UnsupportedModelError, "yarn_log_multiplier=0.1"),
        (YARN | {"llama.rope.scaling.yarn_ext_factor": 0.5}, {}, UnsupportedModelError, "yarn_ext_factor=0.5"),
        (YARN, {"rope_freqs": torch.ones(8)}, UnsupportedModelError, "beside the tensor rope_freqs.weight"),
        ({}, {"rope_freqs": torch.ones(4)}, UnsupportedModelError, r"shape \[4\].*8 numbers"),
        ({}, {"rope_freqs": torch.zeros(8)}, UnsupportedModelError, "numbers above 0"),
        ({}, {"rope_freqs": torch.full((8,), math.nan)}, UnsupportedModelError, "numbers above 0"),
        ({}, {"rope_factors_long": torch.ones(8)}, UnsupportedModelError, "rope_factors_long"),
        ({"llama.rope.scaling.type": "longrope"}, {}, UnsupportedModelError, "'longrope'.*tensors none"),
        ({"llama.rope.freq_base": "x"}, {}, ModelFileError, "freq_base is 'x'"),
    ],
)
def test_what_cannot_be_said_is_refused(changes, tensors, error, named):
    with pytest.raises(error, match=named):
        read(changes, **tensors)
