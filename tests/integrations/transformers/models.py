"""Small random models of the families that scout serves, prompts for them, and what must be as before."""

from inspect import signature

import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...models.families import SIZES, filled

MIXED = ["sliding_attention", "sliding_attention", "full_attention"]
FAMILIES = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2-sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {}),
    "qwen3-moe": ("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "granite": ("Granite", {"attention_multiplier": 0.2}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1]}),
    "glm4": ("Glm4", {}),
    "gpt-oss": (
        "GptOss",
        {"sliding_window": 32, "layer_types": 2 * MIXED[1:], "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "gemma3": ("Gemma3", {"sliding_window": 32, "layer_types": 2 * MIXED, "query_pre_attn_scalar": 24}),
}


def make(family, **changes):
    name, options = FAMILIES[family]
    config = getattr(transformers, "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config")
    sizes = SIZES | {"head_dim": 16, "pad_token_id": 0} | options | changes
    if "layer_types" in sizes:
        sizes["num_hidden_layers"] = len(sizes["layer_types"])
    return filled(getattr(transformers, f"{name}ForCausalLM")(config(**sizes)))


def prompts(*lengths):
    """Random prompts of these lengths, padded on the left: ids and mask."""
    generator = torch.Generator().manual_seed(1)
    ids, mask = torch.zeros((2, len(lengths), max(lengths)), dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, -length:] = torch.randint(1, 250, (length,), generator=generator)
        mask[row, -length:] = 1
    return {"input_ids": ids, "attention_mask": mask}


def answer(model, given, new_tokens=20, **options):
    """The new tokens of a greedy answer."""
    greedy = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": None}
    return model.generate(**given, **greedy | options)[:, given["input_ids"].shape[1] :]


def as_cache(model, cache):
    """A cache as the argument that the installed version has for it."""
    known = signature(type(model).forward).parameters
    return {"cache" if "cache" in known else "past_key_values": cache}


def state(model):
    """All of a model, and of the library, that a session changes."""
    modules = list(model.modules())
    return (
        [
            (m._forward_pre_hooks.copy(), m._forward_hooks.copy(), m._forward_pre_hooks_with_kwargs.copy())
            for m in modules
        ],
        [id(getattr(module, "config", None)) for module in modules],
        [vars(module).get("forward") for module in modules],
        model.config.to_dict() | {"attention": model.config._attn_implementation},
        model.generation_config.to_dict(),
        {name: value for name, value in vars(model).items() if name != "_modules"},
        dict(ALL_ATTENTION_FUNCTIONS),
    )
