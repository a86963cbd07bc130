"""`scout="auto"`: what is chosen, and that it runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from scoutattention import LLM, CapacityError, ConfigError, EngineConfig, SamplingParams, ScoutConfig
from scoutattention.engine import plan
from scoutattention.engine.plan import choose
from scoutattention.models import loader
from scoutattention.models.file_fields import read_json
from scoutattention.models.formats import model_files
from scoutattention.models.shapes.known import read_model
from scoutattention.planner.computers import GIB, Computer, find_computer

QWEN = read_model("qwen3-8b")
CUDA = EngineConfig(device="cuda", max_num_seqs=1)


def chosen(monkeypatch, tmp_path, hardware, engine_config, host_memory=None, model=QWEN):
    computer = find_computer(hardware).with_host_memory(host_memory)
    monkeypatch.setattr(plan, "this_computer", lambda host, driver, measured: computer)
    return choose(model, engine_config, tmp_path)


def test_full_attention_is_chosen_where_it_is_faster(monkeypatch, tmp_path):
    scout, engine = chosen(monkeypatch, tmp_path, "rtx-4090", replace(CUDA, max_model_len=8192))
    assert (scout.budget, engine.device_memory, engine.host_memory) == (None, "all", None)


def test_scout_is_chosen_where_full_attention_does_not_fit(monkeypatch, tmp_path):
    config = replace(CUDA, max_model_len=32768, max_num_seqs=4)
    scout, engine = chosen(monkeypatch, tmp_path, "rtx-4090", config)
    assert scout.budget == ScoutConfig().budget
    assert engine.host_memory == 4 * QWEN.shape.kv_bytes(32768)
    assert engine == replace(config, host_memory=engine.host_memory)


def test_what_is_given_is_kept(monkeypatch, tmp_path):
    config = replace(CUDA, max_num_seqs=4, kv_dtype="int8", host_memory=20 * GIB)
    assert chosen(monkeypatch, tmp_path, "rtx-4090", config)[1] == config


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"device_memory": 1 << 30}, ConfigError, "leave device_memory out"),
        ({"tensor_parallel_size": 2}, ConfigError, "set tensor_parallel_size to 1"),
        ({}, CapacityError, r"one sequence of 40960 tokens misses 2\.\d GiB of device memory and 4\.\d GiB of host"),
    ],
)
def test_what_cannot_be_chosen_is_refused(monkeypatch, tmp_path, changed, error, message):
    with pytest.raises(error, match=message):
        chosen(monkeypatch, tmp_path, "rtx-4080", replace(CUDA, **changed), host_memory=4 * GIB)


def test_weights_in_few_bits_are_planned_for_as_such(monkeypatch, tmp_path):
    """15.3 GiB in bfloat16 and 4.8 in 4 bits, on a host of 16 GiB."""
    small = replace(find_computer("desktop").host, memory=16 * GIB)
    monkeypatch.setattr(plan, "this_computer", lambda host, driver, measured: Computer("small", small))
    config = EngineConfig(max_model_len=8192, max_num_seqs=2)
    with pytest.raises(
        CapacityError, match=r"weights of qwen3-8b take 15\.3 GiB in bfloat16.*weights \(--weights\) int4"
    ):
        choose(QWEN, config, tmp_path)
    assert choose(read_model("qwen3-8b", weights="int4"), config, tmp_path)[0].budget is not None


def test_a_model_is_resolved_and_read_once(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    read, resolved = [], []
    monkeypatch.setattr(model_files, "read_json", lambda path: (read.append(path.name), read_json(path))[1])
    monkeypatch.setattr(loader, "resolve", lambda name: (resolved.append(name), Path(name))[1])
    with LLM(str(tiny_models["llama"]), scout="auto", max_model_len=64, max_num_seqs=1):
        assert (len(resolved), read.count("config.json")) == (1, 1)


def test_what_is_chosen_runs(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with LLM(str(tiny_models["llama"]), scout="auto", max_model_len=64, max_num_seqs=1) as llm:
        assert llm.scout.budget is None, "nothing is saved at 64 tokens"
        (output,) = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=2, ignore_eos=True))
        assert len(output.token_ids) == 2
