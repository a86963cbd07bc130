"""Room for vLLM's sequences, before and behind loading the model."""

import re
from types import SimpleNamespace

import pytest
import torch

from scoutattention import CapacityError, ConfigError
from scoutattention.integrations.vllm import memory

MIB = 1 << 20


def config(scout, sequences=4, tokens=1024, dtype=torch.float32, ranks=1):
    """What vLLM makes of its arguments, of 4 layers; ranks share 8 query heads and 4 KV heads."""
    model = SimpleNamespace(
        architecture="SomeForCausalLM",
        dtype=dtype,
        max_model_len=tokens,
        hf_text_config=SimpleNamespace(hidden_size=64, vocab_size=100),
        get_num_attention_heads=lambda parallel: 8 // parallel.tensor_parallel_size,
        get_num_kv_heads=lambda parallel: 4 // parallel.tensor_parallel_size,
        get_num_layers=lambda parallel: 4,
        get_head_size=lambda: 64,
    )
    return SimpleNamespace(
        additional_config={"scout": scout},
        model_config=model,
        scheduler_config=SimpleNamespace(max_num_seqs=sequences),
        parallel_config=SimpleNamespace(tensor_parallel_size=ranks),
    )


def test_settings_have_the_numbers_of_vllm():
    engine = memory.settings_of(config({"budget": 256, "device_memory": "slots"}, 3, 2048, ranks=2)).engine
    assert (engine.device, engine.max_num_seqs, engine.max_model_len) == ("cpu", 3, 2048)
    assert (engine.tensor_parallel_size, engine.device_memory) == (2, "slots")


@pytest.mark.parametrize(
    ("scout", "message"),
    [
        # 32 tokens of 4 layers and 4 KV heads, keys and values: 256 KiB; 4 sequences of 1,024 tokens need 128 of them
        (
            {"host_memory": 127 * MIB // 4},
            "scout's host pool has 127 of the 128 blocks of 32 tokens that 4 sequences of",
        ),
        (
            {"budget": 256, "device_memory": 3 * MIB // 4, "ablation": {"on_miss": "drop"}},
            "scout's device_memory has slots for 1 sequences, and --max-num-seqs is 4",
        ),
    ],
)
def test_too_little_memory_is_told_before_a_model_is_loaded(scout, message, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1024 * MIB)
    with pytest.raises(CapacityError, match=re.escape(message)):
        memory.check_memory(config(scout))


def test_enough_memory_is_no_error(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1024 * MIB)
    for ranks in (1, 2):  # all ranks are on one machine
        memory.check_memory(config({"host_memory": 32 * MIB}, ranks=ranks))


def test_a_format_that_the_cache_does_not_know_is_refused():
    with pytest.raises(ConfigError, match=re.escape("SomeForCausalLM is in torch.float64, and scout knows float32")):
        memory.check_memory(config({}, dtype=torch.float64))
