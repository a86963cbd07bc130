"""What a worker did, as the front process of vLLM tells it."""

import os
import subprocess
import sys

import pytest
from prometheus_client import REGISTRY

from scoutattention.attention.step import COUNTERS, StepStats
from scoutattention.integrations.vllm import metrics

LABELS = {"model_name": "some", "engine": "0", "rank": "0"}


@pytest.fixture
def instance(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv(metrics.SHARED, raising=False)
    yield "one"
    if metrics.FRONT.folders:
        REGISTRY.unregister(metrics.FRONT)
        metrics.FRONT.folders.clear()


def test_totals_of_a_worker_are_among_the_metrics(instance):
    metrics.show(instance)
    totals = metrics.Totals(instance, LABELS)
    assert REGISTRY.get_sample_value("scout:blocks_far_total", LABELS) == 0
    totals.write(StepStats(10, 4, 3, 0.5, 0.25, 2, 4096))
    told = {name: REGISTRY.get_sample_value(f"scout:{name}_total", LABELS) for name in COUNTERS}
    assert told == {
        "blocks_resident_hits": 6,
        "blocks_far": 4,
        "guarded_heads": 3,
        "cpu_attention_seconds": 0.75,
        "cpu_hidden_seconds": 0.5,
        "cpu_wait_seconds": 0.25,
        "recalls": 2,
        "host_to_device_bytes": 4096,
    }


def test_engines_of_one_process_are_told_apart_by_their_labels(instance):
    for name in (instance, "two"):
        metrics.show(name)
        metrics.Totals(name, LABELS | {"model_name": name}).write(StepStats(far_blocks=len(name)))
    for name in (instance, "two"):
        assert REGISTRY.get_sample_value("scout:blocks_far_total", LABELS | {"model_name": name}) == 3


def test_without_a_front_process_nothing_is_written(instance, tmp_path):
    metrics.Totals(instance, LABELS).write(StepStats(1))
    assert list(tmp_path.iterdir()) == []


def test_where_vllm_shares_a_folder_the_file_is_in_it(instance, tmp_path, monkeypatch):
    monkeypatch.setenv(metrics.SHARED, str(tmp_path))
    metrics.show(instance)
    metrics.Totals(instance, LABELS).write(StepStats(far_blocks=7))
    assert metrics.FRONT.folders == []
    assert [file.name for file in tmp_path.iterdir()] == [f"counter_scout-{os.getpid()}.db"]
    read = "from prometheus_client import CollectorRegistry as R, generate_latest, multiprocess as m\n"
    read += "r = R(); m.MultiProcessCollector(r); print(generate_latest(r).decode())"  # as vLLM does
    told = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True).stdout
    assert 'scout:blocks_far_total{engine="0",model_name="some",rank="0"} 7.0' in told
