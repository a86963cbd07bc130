import pytest

from scoutattention.errors import ModelFileError, UnsupportedModelError
from scoutattention.models.config import ModelConfig, RopeConfig, checkpoint_dtype, token_ids

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "vocab_size": 300,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}


def read(**changes):
    return ModelConfig.from_hf({**BASE, **changes}, "float32")


def test_sizes():
    shape = read().shape
    assert (shape.num_layers, shape.num_query_heads, shape.num_kv_heads, shape.head_dim) == (2, 4, 2, 16)
    assert (shape.hidden_size, shape.intermediate_size, shape.vocab_size, shape.max_positions) == (64, 96, 300, 4096)
    assert shape.dtype == "float32"
    assert read(head_dim=32).shape.head_dim == 32
    assert read(head_dim=None).shape.head_dim == 16
    assert read(num_key_value_heads=None).shape.num_kv_heads == 4


@pytest.mark.parametrize(
    "entries",
    [
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_scaling": {"type": "llama3", **LLAMA3}},
        {"rope_theta": None, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
    ],
)
def test_every_spelling_of_rope(entries):
    assert read(**entries).rope == RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 512)


def test_plain_and_linear_rope():
    assert read().rope == read(rope_scaling=None).rope == RopeConfig(5e5)
    assert read(rope_scaling={"type": "linear", "factor": 2}).rope == RopeConfig(5e5, "linear", 2.0)


@pytest.mark.parametrize(
    ("architecture", "entries", "switches"),
    [
        ("LlamaForCausalLM", {}, (False, False, False)),
        ("LlamaForCausalLM", {"attention_bias": True}, (True, True, False)),
        ("MistralForCausalLM", {"sliding_window": None}, (False, False, False)),
        ("MistralForCausalLM", {"attention_bias": True}, (False, False, False)),
        ("Qwen2ForCausalLM", {"sliding_window": 64, "use_sliding_window": False}, (True, False, False)),
        ("Qwen3ForCausalLM", {"layer_types": ["full_attention"] * 2}, (False, False, True)),
        ("Qwen3ForCausalLM", {"attention_bias": True}, (True, True, True)),
    ],
)
def test_switches_of_the_families(architecture, entries, switches):
    config = read(architectures=[architecture], **entries)
    assert (config.qkv_bias, config.output_bias, config.qk_norm) == switches


def test_a_window_that_covers_every_position_is_no_window():
    assert read(architectures=["MistralForCausalLM"], sliding_window=4096).architecture == "MistralForCausalLM"


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"architectures": None}, "none given"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 1024}, "sliding_window=1024"),
        (
            {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 64},
            "sliding_window=64",
        ),
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"head_dim": 15}, "head_dim=15"),
    ],
)
def test_what_is_not_supported_is_named(entries, named):
    with pytest.raises(UnsupportedModelError, match=named):
        read(**entries)


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers='two'"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"num_key_value_heads": 3}, "3 KV heads"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps='small'"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
    ],
)
def test_what_is_malformed_is_named(entries, named):
    with pytest.raises(ModelFileError, match=named):
        read(**entries)


def test_unknown_dtype_is_refused():
    with pytest.raises(UnsupportedModelError, match="float8"):
        ModelConfig.from_hf(BASE, "float8")


def test_small_readers():
    assert checkpoint_dtype({"torch_dtype": "bfloat16"}) == checkpoint_dtype({"dtype": "torch.bfloat16"}) == "bfloat16"
    assert checkpoint_dtype({}) is None
    assert token_ids(None) == frozenset()
    assert token_ids(0) == {0}
    assert token_ids([1, 2]) == {1, 2}
