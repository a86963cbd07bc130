"""Where config.json may say how positions are rotated, which of several places counts, and what `rope_scaling` does."""

import json

import pytest
import torch
import transformers

from scoutattention import LLM
from scoutattention.errors import ConfigError, ModelFileError, UnsupportedModelError
from scoutattention.models.loader import load
from scoutattention.models.rope import RopeConfig, inverse_frequencies

from ..tiny import save
from . import families
from .test_config import read

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def theirs(**entries):
    """The rotary module that transformers makes of the same entries."""
    entries = {"rope_theta": 5e5, "max_position_embeddings": 4096} | entries
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, **{key: value for key, value in entries.items() if value is not None}
    )
    return transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"rope_theta": None},
        {"rope_theta": 1e6},
        {"rope_parameters": {"rope_theta": 1e6}},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "linear", "factor": 2.0}, "rope_theta": 10.0},
        {"rope_parameters": {"rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 5e5}, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": {"type": "linear", "factor": 4}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": {}},
        {"rope_parameters": None, "rope_scaling": YARN},
        {"rope_scaling": {"factor": 4.0}},
        {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 4.0}},
        {"rope_scaling": YARN, "original_max_position_embeddings": 1024},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_scaling": LLAMA3, "original_max_position_embeddings": 512},
        {"rope_parameters": {**LLAMA3, "rope_theta": 1e4, "original_max_position_embeddings": 256}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "original_max_position_embeddings": 512},
        {"partial_rotary_factor": 0.5},
        {"partial_rotary_factor": 0.5, "rope_scaling": {"rope_type": "proportional"}},
        {"partial_rotary_factor": 0.5, "rope_scaling": {"rope_type": "proportional", "partial_rotary_factor": 0.25}},
        {"partial_rotary_factor": 0.95, "rope_scaling": {"rope_type": "proportional"}},
    ],
)
def test_every_place_counts_as_in_transformers(entries):
    expected, rope = theirs(**json.loads(json.dumps(entries))), read(**entries).rope
    assert torch.equal(inverse_frequencies(rope, 16), expected.inv_freq)
    assert rope.attention_factor == expected.attention_scaling


@pytest.mark.parametrize(
    ("error", "entries", "named"),
    [
        (ModelFileError, {"rope_scaling": {"type": "linear"}}, "'factor'"),
        (ModelFileError, {"rope_scaling": {"type": "yarn", "factor": "4"}}, "factor='4'"),
        (ModelFileError, {"rope_scaling": {"type": "yarn", "factor": True}}, "factor=true"),
        (ModelFileError, {"rope_scaling": {"type": "yarn", "factor": float("inf")}}, "factor=inf"),
        (ModelFileError, {"rope_scaling": {"type": "linear", "factor": 1e9}}, "factor=1000000000"),
        (ModelFileError, {"rope_scaling": "yarn"}, "rope_scaling='yarn'"),
        (ModelFileError, {"rope_theta": 0}, "rope_theta=0"),
        (ModelFileError, {"rope_theta": float("nan")}, "rope_theta=nan"),
        (ModelFileError, {"rope_theta": 1e-60}, "rope_type='default'"),
        (ModelFileError, {"rope_theta": 1.0, "rope_scaling": YARN}, "rope_type='yarn'"),
        (ModelFileError, {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor=1.0"),
        (ModelFileError, {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "short_factor=a list"),
        (ModelFileError, {"rope_scaling": YARN, "original_max_position_embeddings": 0}, "_embeddings=0"),
        (ModelFileError, {"rope_scaling": {**YARN, "truncate": 1}}, "truncate=1"),
        (ModelFileError, {"rope_scaling": YARN, "rope_parameters": {"rope_theta": 1e6}}, "rope_theta=1000000.0"),
        (UnsupportedModelError, {"rope_scaling": {"rope_type": "su", "factor": 4.0}}, "rope_type='su'"),
        (UnsupportedModelError, {"rope_scaling": {**YARN, "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        (UnsupportedModelError, {"rope_parameters": {"full_attention": YARN}}, "full_attention=an object"),
    ],
)
def test_what_does_not_work_is_named(error, entries, named):
    with pytest.raises(error, match=named):
        read(**entries)


@pytest.mark.parametrize(
    ("entries", "limit"),
    [
        ({"rope_scaling": YARN}, 4096),
        ({"rope_scaling": {**YARN, "factor": 16.0}}, 8192),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 4 * 4096),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.5}}, 10240),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 8192),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, 4096),
        ({"rope_scaling": LLAMA3}, 4096),
        ({"max_position_embeddings": 10**12}, 10**12),
    ],
)
def test_the_limit_follows_from_the_scaling(entries, limit):
    assert read(**entries).shape.max_positions == limit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = families.make("qwen2", max_position_embeddings=512, rope_parameters={"rope_theta": 500.0})
    return save(model, tmp_path_factory.mktemp("plain"))


def test_an_override_takes_the_place_of_the_scaling_and_keeps_the_base(folder):
    config = load(str(folder), rope_scaling={"type": "yarn", "factor": 4}).decoder.config
    assert config.rope == RopeConfig(
        500.0, "yarn", 4.0, original_max_positions=512, attention_factor=config.rope.attention_factor
    )
    assert config.shape.max_positions == 2048
    assert load(str(folder), rope_scaling={"rope_type": "default", "rope_theta": 7}).decoder.config.rope == RopeConfig(
        7.0
    )
    assert load(str(folder)).decoder.config.rope == RopeConfig(500.0)


def test_an_engine_with_an_override_takes_longer_prompts(folder):
    llm = LLM(str(folder), rope_scaling={"rope_type": "linear", "factor": 2.0})
    assert llm.engine.plan.max_len == 1024
    llm.close()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ({}, "rope_type"),
        ({"factor": 4.0}, "rope_type"),
        ("yarn", "rope_scaling='yarn'"),
        ({"rope_type": "ntk"}, "rope_scaling gives rope_type='ntk'"),
        ({"rope_type": "yarn"}, "rope_scaling does not give 'factor'"),
        ({"rope_type": "yarn", "factor": -1}, "factor=-1"),
    ],
)
def test_an_override_that_does_not_work_is_the_callers_mistake(folder, override, named):
    with pytest.raises(ConfigError, match=named):
        LLM(str(folder), rope_scaling=override)
