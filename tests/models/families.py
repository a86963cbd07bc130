"""Small random models with every switch of every supported family, made by transformers."""

import math

import torch
import transformers

SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 254,
    "eos_token_id": 255,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10_000.0,
}
FAMILIES = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-llama3": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 32}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}}),
    "llama-bias": ("Llama", {"attention_bias": True, "rms_norm_eps": 1e-2}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 24}),
    "mistral-one-kv-head": ("Mistral", {"sliding_window": 4096, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "sliding_window": 32, "use_sliding_window": False}),
    "qwen2-no-groups": ("Qwen2", {"num_key_value_heads": 4}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
}


def make(family, **changes):
    """A random model in float32 whose biases and norm weights matter as much as its projections."""
    name, options = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**SIZES | options | changes)
    return filled(getattr(transformers, f"{name}ForCausalLM")(config))


def filled(model):
    """A model of transformers with such random weights, for evaluation."""
    model = model.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in key:
                value.copy_(1.0 + 0.3 * noise)
            else:
                value.copy_(noise / math.sqrt(value.shape[-1]))
    return model
