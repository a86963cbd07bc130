from pathlib import Path

import pytest

from scoutattention.errors import ModelFileError, UnsupportedModelError
from scoutattention.models.config import ModelConfig
from scoutattention.models.formats.gguf_config import expected_shapes, hf_config, tensor_name
from scoutattention.models.formats.gguf_metadata import Metadata
from scoutattention.models.rope import RopeConfig

FIELDS = {
    "general.architecture": "llama",
    "llama.attention.head_count": 4,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.block_count": 2,
    "llama.context_length": 512,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "tokenizer.ggml.tokens": [f"t{i}" for i in range(300)],
}
SHAPES = dict(
    expected_shapes(
        {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 96,
            "vocab_size": 300,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "attention_bias": False,
        }
    )
)
BIASES = {f"blk.{layer}.attn_{part}.bias": (64,) for layer in range(2) for part in ("q", "k", "v", "output")}


def read(changes=(), shapes=SHAPES, **tensors):
    fields = FIELDS | dict(changes)
    entries = {key: value for key, value in fields.items() if value is not None}
    return hf_config(Metadata(Path("tiny.gguf"), entries), shapes, {f"{key}.weight": t for key, t in tensors.items()})


def test_defaults_of_the_format():
    config = ModelConfig.from_hf(read(), "float32")
    assert (config.shape.num_kv_heads, config.shape.head_dim, config.shape.vocab_size) == (4, 16, 300)
    assert config.rope == RopeConfig(10_000.0)
    assert config.tie_word_embeddings
    assert not ModelConfig.from_hf(read(shapes=SHAPES | {"output.weight": (300, 64)}), "float32").tie_word_embeddings
    assert ModelConfig.from_hf(read(shapes=SHAPES | BIASES), "float32").qkv_bias


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"general.architecture": "gemma3"}, UnsupportedModelError, "gemma3"),
        ({"general.architecture": None}, ModelFileError, "tiny.gguf does not give general.architecture"),
        ({"general.architecture": 7}, ModelFileError, "general.architecture is 7, where a text"),
        ({"general.type": "adapter"}, UnsupportedModelError, "general.type='adapter'"),
        ({"llama.attention.head_count": [4, 2]}, ModelFileError, r"head_count is \[4, 2\].*differ between layers"),
        ({"llama.attention.head_count": []}, ModelFileError, "one number for all layers"),
        ({"llama.attention.head_count": 0}, ModelFileError, "head_count is 0, where a whole number from 1"),
        ({"llama.attention.head_count": "4"}, ModelFileError, "head_count is '4'"),
        ({"llama.attention.head_count": True}, ModelFileError, "head_count is True"),
        ({"llama.attention.head_count": 4.0}, ModelFileError, "head_count is 4.0"),
        ({"llama.attention.head_count_kv": 3}, ModelFileError, r"attn_k.weight has the shape \[64, 64\]"),
        ({"llama.attention.head_count": 100}, ModelFileError, "key_length is 0"),
        ({"llama.embedding_length": 0}, ModelFileError, "embedding_length is 0"),
        ({"llama.embedding_length": 128}, ModelFileError, r"token_embd.weight has the shape \[300, 64\].*\[300, 128\]"),
        ({"llama.feed_forward_length": 2**63}, ModelFileError, "feed_forward_length"),
        ({"llama.block_count": 2**40}, ModelFileError, "no tensor blk.2.attn_norm.weight"),
        ({"llama.block_count": 1}, UnsupportedModelError, "9 tensors that LlamaForCausalLM does not use.*blk.1."),
        ({"llama.context_length": None}, ModelFileError, "llama.context_length"),
        ({"llama.context_length": 0}, ModelFileError, "llama.context_length is 0"),
        ({"llama.context_length": 2**63}, ModelFileError, "llama.context_length"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, ModelFileError, "epsilon is nan"),
        ({"llama.attention.layer_norm_rms_epsilon": [1e-5]}, ModelFileError, "epsilon is .*finite number"),
        ({"llama.attention.value_length": 8}, UnsupportedModelError, "value_length"),
        ({"llama.attention.sliding_window": 511}, UnsupportedModelError, "attention.sliding_window=511, below the 512"),
        ({"llama.attention.causal": False}, UnsupportedModelError, "causal=false"),
        ({"tokenizer.ggml.tokens": ["a"] * 299}, ModelFileError, r"\[300, 64\], where the metadata imply \[299, 64\]"),
        ({"tokenizer.ggml.tokens": [1, 2]}, ModelFileError, r"tokens is \[1, 2\], where a list of texts"),
        ({"tokenizer.ggml.tokens": None}, ModelFileError, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.suppress_tokens": [5]}, UnsupportedModelError, "suppress_tokens"),
        ({"llama.logit_scale": 0.5}, UnsupportedModelError, "llama.logit_scale=0.5"),
        ({"llama.attention.scale": 0.1}, UnsupportedModelError, "llama.attention.scale=0.1"),
        ({"llama.attention.scale": 1.0}, UnsupportedModelError, "llama.attention.scale=1.0"),
        ({"llama.residual_scale": 2.0}, UnsupportedModelError, "llama.residual_scale"),
        ({"llama.embedding_scale": 2.0}, UnsupportedModelError, "llama.embedding_scale"),
        ({"llama.expert_count": 8}, UnsupportedModelError, "llama.expert_count=8"),
        ({"llama.final_logit_softcapping": 30.0}, UnsupportedModelError, "final_logit_softcapping"),
        ({"llama.attention.clamp_kqv": 8.0}, UnsupportedModelError, "clamp_kqv"),
        ({"llama.what.is.new": 1}, UnsupportedModelError, "llama.what.is.new=1"),
    ],
)
def test_what_cannot_be_read_is_named(changes, error, named):
    with pytest.raises(error, match=named):
        read(changes)


def test_what_is_off_or_has_no_effect_is_accepted():
    changes = {
        "llama.expert_count": 0,
        "llama.logit_scale": 1.0,
        "llama.attention.scale": 0.0,
        "llama.attention.sliding_window": 512,
        "llama.use_parallel_residual": False,
        "llama.vocab_size": 300,
        "llama.attention.head_count_kv": [4, 4],
        "llama.attention.value_length": 16,
        "llama.tensor_data_layout": "Meta AI original pth",
        "qwen2.logit_scale": 0.5,
        "general.name": "tiny",
    }
    assert read(changes) == read()


def test_a_context_is_just_a_number():
    assert read({"llama.context_length": 2**62})["max_position_embeddings"] == 2**62


@pytest.mark.parametrize("missing", ["token_embd.weight", "blk.1.ffn_down.weight", "output_norm.weight"])
def test_a_missing_tensor_is_named(missing):
    with pytest.raises(ModelFileError, match=f"tiny.gguf has no tensor {missing}"):
        read(shapes={name: shape for name, shape in SHAPES.items() if name != missing})


def test_biases_are_all_there_or_none():
    assert read(shapes=SHAPES | BIASES)["attention_bias"]
    with pytest.raises(ModelFileError, match=r"blk\.0\.attn_k\.bias"):
        read(shapes=SHAPES | {"blk.0.attn_q.bias": (64,)})


def test_a_tensor_that_nobody_uses_is_named():
    with pytest.raises(UnsupportedModelError, match=r"1 tensors that LlamaForCausalLM does not use.*cls\.weight"):
        read(shapes=SHAPES | {"cls.weight": (2, 64)})


def test_tensor_names():
    assert tensor_name("token_embd.weight") == "model.embed_tokens.weight"
    assert tensor_name("blk.12.attn_q.bias") == "model.layers.12.self_attn.q_proj.bias"
    for stranger in ("blk.0.ffn_gate_inp.weight", "position_embd.weight", "blk.x.attn_q.weight"):
        with pytest.raises(UnsupportedModelError, match=stranger):
            tensor_name(stranger)
