import pytest
from transformers import AutoConfig

from scoutattention.errors import ModelFileError, UnsupportedModelError
from scoutattention.models.config import ModelConfig
from scoutattention.models.rope import RopeConfig
from scoutattention.models.shapes.sizes import checkpoint_dtype

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


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_what_is_left_out_is_what_transformers_has(name):
    theirs = AutoConfig.for_model(name)
    ours = ModelConfig.from_hf({"model_type": name, "sliding_window": None}, "float32")
    shape = ours.shape
    assert (shape.hidden_size, shape.num_layers) == (theirs.hidden_size, theirs.num_hidden_layers)
    assert (shape.num_query_heads, shape.num_kv_heads) == (theirs.num_attention_heads, theirs.num_key_value_heads)
    assert (shape.intermediate_size, shape.vocab_size) == (theirs.intermediate_size, theirs.vocab_size)
    assert shape.head_dim == getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads)
    assert (shape.max_positions, ours.rms_norm_eps) == (theirs.max_position_embeddings, theirs.rms_norm_eps)
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.rope == RopeConfig(theirs.rope_parameters["rope_theta"])


@pytest.mark.parametrize(
    ("architecture", "entries"),
    [
        ("LlamaForCausalLM", {"sliding_window": 64, "use_sliding_window": True, "model_type": "llama"}),
        ("LlamaForCausalLM", {"quantization_config": None, "attention_multiplier": 2.0, "layer_types": None}),
        ("Qwen2ForCausalLM", {"sliding_window": 64, "mlp_bias": True}),
        ("Qwen2ForCausalLM", {"sliding_window": 64, "use_sliding_window": True}),
        ("Qwen3ForCausalLM", {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 2}),
        ("Qwen3ForCausalLM", {"use_sliding_window": True, "layer_types": ["full_attention"] * 2}),
    ],
)
def test_what_the_family_does_not_look_at_changes_nothing(architecture, entries):
    assert read(architectures=[architecture], **entries) == read(architectures=[architecture])


@pytest.mark.parametrize("name", ["LLaMAForCausalLM", "LlamaModel"])
def test_beside_a_model_type_any_class_of_the_family_will_do(name):
    assert read(architectures=[name], model_type="llama") == read()
    with pytest.raises(UnsupportedModelError, match=name):
        read(architectures=[name])


def test_a_window_that_covers_every_position_is_no_window():
    assert read(architectures=["MistralForCausalLM"], sliding_window=4096).architecture == "MistralForCausalLM"


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"architectures": None}, "neither architectures nor model_type"),
        ({"architectures": None, "model_type": "gemma"}, "model_type='gemma'"),
        ({"model_type": "mistral"}, "architecture='LlamaForCausalLM', model_type='mistral'"),
        ({"architectures": ["MistralForCausalLM"], "max_position_embeddings": 4097}, "sliding_window=4096"),
        (
            {"architectures": ["MistralForCausalLM"], "sliding_window": 1024},
            r"sliding_window=1024 .*: with max_position_embeddings=1024 there",
        ),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "use_sliding_window": True,
                "sliding_window": 64,
                "max_window_layers": 1,
            },
            "sliding_window=64",
        ),
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        (
            {"architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 29, "use_sliding_window": True}
            | {"max_position_embeddings": 4097},
            "sliding_window=4096",
        ),
        ({"layer_types": ["sliding_attention"] * 2, "sliding_window": 64}, "sliding_window=64"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
        ({"quantization_config": {}}, "an unnamed method"),
        ({"per_layer_config": {"0": {"rms_norm_eps": 0.5}}}, "per_layer_config=an object"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights='other.safetensors'"),
        ({"attention_chunk_size": 64}, "attention_chunk_size=64"),
        ({"head_dim": 15}, "head_dim=15"),
        ({"head_dim": 10**12}, "head_dim=1000000000000"),
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
        ({"num_hidden_layers": True}, "num_hidden_layers=true"),
        ({"num_hidden_layers": 2.0}, r"num_hidden_layers=2\.0"),
        ({"attention_bias": 1}, "attention_bias=1"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings=null"),
        ({"layer_types": ["full_attention"]}, "layer_types=a list, which is not of 2 entries"),
        ({"layer_types": [["full_attention"]] * 2}, "layer_types=a list"),
        ({"architectures": "LlamaForCausalLM"}, "architectures='LlamaForCausalLM'"),
        ({"quantization_config": "awq"}, "quantization_config='awq'"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 0}, "sliding_window=0"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"num_key_value_heads": 3}, "3 KV heads"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps='small'"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps=-1e-06"),
        ({"rms_norm_eps": True}, "rms_norm_eps=true"),
    ],
)
def test_what_is_malformed_is_named(entries, named):
    with pytest.raises(ModelFileError, match=named):
        read(**entries)


def test_unknown_dtype_is_refused():
    with pytest.raises(UnsupportedModelError, match="float8"):
        ModelConfig.from_hf(BASE, "float8")


def test_the_dtype_of_a_checkpoint():
    assert checkpoint_dtype({"torch_dtype": "bfloat16"}) == checkpoint_dtype({"dtype": "torch.bfloat16"}) == "bfloat16"
    assert checkpoint_dtype({}) is None
