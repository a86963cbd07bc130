"""Metrics of scout beside vLLM's own: workers write totals to files, and vLLM's front process reads them."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import REGISTRY, Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from typing_extensions import override

from ...attention.step import COUNTERS, StepStats

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""vLLM's folder of such files, where it has several front processes."""


class Totals:
    """A worker's totals. Its file has the form that Prometheus's client gives to processes that share metrics."""

    def __init__(self, instance: str, labels: dict[str, str]) -> None:
        """`instance`: vLLM's name of the engine.   labels: of every metric."""
        shared = os.environ.get(SHARED)
        directory = folder(instance) if shared is None else Path(shared)
        self._file = None
        if directory.is_dir():  # else the front process is on another machine, or has no metrics
            self._file = MmapedDict(str(directory / f"counter_scout-{os.getpid()}.db"))
        names, values = list(labels), list(labels.values())
        self._keys = {
            name: mmap_key(f"scout:{name}", f"scout:{name}_total", names, values, text)
            for name, (text, _) in COUNTERS.items()
        }
        self.write(StepStats())

    def write(self, stats: StepStats) -> None:
        """These are the totals now."""
        if self._file is not None:
            for name, (_, read) in COUNTERS.items():
                self._file.write_value(self._keys[name], read(stats), 0.0)


class Front(Collector):
    """Reads the files of all workers of this process's engines whenever somebody asks for metrics."""

    def __init__(self) -> None:
        self.folders: list[Path] = []

    @override
    def collect(self) -> Iterable[Metric]:
        files = [str(file) for each in self.folders for file in each.glob("*.db")]
        metrics: Iterable[Metric] = MultiProcessCollector.merge(files)
        return metrics


FRONT = Front()


def show(instance: str) -> None:
    """Have the totals of an engine's workers among vLLM's metrics.   instance: vLLM's name of the engine."""
    if SHARED in os.environ:  # then vLLM reads all files of its folder
        return
    if not FRONT.folders:
        REGISTRY.register(FRONT)
    made = folder(instance)
    made.mkdir(mode=0o700)
    FRONT.folders.append(made)
    atexit.register(shutil.rmtree, made, ignore_errors=True)


def folder(instance: str) -> Path:
    """Where the front process of an engine and its workers meet, on one machine."""
    return Path(tempfile.gettempdir()) / f"scout-metrics-{instance}"
