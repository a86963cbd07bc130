"""Settings of scout in vLLM's `additional_config`."""

import re

import pytest

from scoutattention import Ablation, ConfigError, EngineConfig, ScoutConfig
from scoutattention.integrations.vllm.settings import read_settings, worker_threads


def test_without_settings_of_scout_there_are_none():
    assert read_settings({}) is None
    assert read_settings({"other": 1}) is None
    assert read_settings(None) is None


def test_fields_are_those_of_the_configurations():
    scout, engine = read_settings(
        {"scout": {"budget": 2048, "device_memory": "slots", "host_memory": "1GiB", "ablation": {"candidates": 2}}}
    )
    assert scout == ScoutConfig(budget=2048, calibration=None, ablation=Ablation(candidates=2))
    assert (engine.device_memory, engine.host_memory) == ("slots", 1 << 30)
    assert read_settings({"scout": {"budget": None}}).scout.budget is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "additional_config has scout=5, which is no table of settings"),
        ({"budgt": 1}, "scout in vLLM has no setting 'budgt': write budget"),
        ({"max_model_len": 1}, "no setting 'max_model_len': known are budget, block_size"),
        ({"calibration": "auto"}, "no setting 'calibration'"),
        ({"budget": "many"}, "budget='many'"),
        ({"budget": 1}, "budget=1 tokens is below"),
        ({"host_memory": "1 mouse"}, "cannot read '1 mouse' as a size"),
        ({"ablation": {"x": 1}}, "ablation={'x': 1} is no table of settings"),
        ({"ablation": 3}, "ablation=3 is no table of settings"),
    ],
)
def test_bad_settings_are_refused(given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_settings({"scout": given})


@pytest.mark.parametrize(
    ("workers", "cores", "bound", "threads"),
    [(None, 8, False, 4), (None, 8, True, 8), (None, 1, False, 1), (3, 8, False, 3), (3, 8, True, 3)],
)
def test_ranks_share_cores_that_vllm_does_not_bind_them_to(workers, cores, bound, threads):
    engine = EngineConfig(tensor_parallel_size=2, workers=workers)
    assert worker_threads(engine, cores, bound=bound) == threads
