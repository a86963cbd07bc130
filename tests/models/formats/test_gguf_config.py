import pytest
import torch

from scoutattention.errors import ModelFileError, UnsupportedModelError
from scoutattention.models.config import ModelConfig
from scoutattention.models.formats.gguf_config import hf_config, tensor_name, uninterleave
from scoutattention.models.rope import RopeConfig, inverse_frequencies

FIELDS = {
    "general.architecture": "llama",
    "llama.attention.head_count": 4,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.block_count": 2,
    "llama.context_length": 512,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
}
SHAPES = {"token_embd.weight": (300, 64)}


def read(shapes=SHAPES, factors=None, **changes):
    fields = FIELDS | {key.replace("__", "."): value for key, value in changes.items()}
    return hf_config({key: value for key, value in fields.items() if value is not None}, shapes, factors)


def test_defaults_of_the_format():
    config = ModelConfig.from_hf(read(), "float32")
    assert (config.shape.num_kv_heads, config.shape.head_dim, config.shape.vocab_size) == (4, 16, 300)
    assert config.rope == RopeConfig(10_000.0)
    assert config.tie_word_embeddings
    assert not ModelConfig.from_hf(read(SHAPES | {"output.weight": (300, 64)}), "float32").tie_word_embeddings
    assert ModelConfig.from_hf(read(SHAPES | {"blk.0.attn_q.bias": (64,)}), "float32").qkv_bias


def test_llama3_scaling_is_known_by_its_factors():
    scaled = RopeConfig(10_000.0, "llama3", 32.0)
    factors = inverse_frequencies(RopeConfig(10_000.0), 64) / inverse_frequencies(scaled, 64)
    assert ModelConfig.from_hf(read(factors=factors), "float32").rope == scaled


def test_other_factors_are_refused():
    with pytest.raises(UnsupportedModelError, match="not llama3's"):
        read(factors=torch.linspace(1.0, 4.0, 8))


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"general__architecture": "gemma3"}, UnsupportedModelError, "gemma3"),
        ({"general__architecture": None}, ModelFileError, "general.architecture"),
        ({"llama__attention__head_count": [4, 2]}, UnsupportedModelError, "differ between layers"),
        ({"llama__context_length": None}, ModelFileError, "llama.context_length"),
        ({"shapes": {}}, ModelFileError, "token_embd.weight"),
    ],
)
def test_what_cannot_be_read_is_named(changes, error, named):
    with pytest.raises(error, match=named):
        read(**changes)


def test_tensor_names():
    assert tensor_name("token_embd.weight") == "model.embed_tokens.weight"
    assert tensor_name("blk.12.attn_q.bias") == "model.layers.12.self_attn.q_proj.bias"
    for stranger in ("blk.0.ffn_gate_inp.weight", "position_embd.weight", "blk.x.attn_q.weight"):
        with pytest.raises(UnsupportedModelError, match=stranger):
            tensor_name(stranger)


def test_uninterleave_puts_the_firsts_of_all_pairs_before_the_seconds():
    rows = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    assert uninterleave(torch.cat((rows, rows + 8)), 2).tolist() == list(range(16))
    assert uninterleave(rows[:, None].expand(8, 3), 1)[:, 2].tolist() == list(range(8))
