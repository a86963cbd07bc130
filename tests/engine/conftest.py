"""Engines whose kernels only queue work, as a device's do."""

import math

import pytest

from scoutattention.engine import engine
from scoutattention.engine.device import make_ops


@pytest.fixture
def streamed(monkeypatch):
    """Engines whose kernels call the CPU by flags, and wait for it, on a stream that does at once what is queued."""

    def deferred(*args):
        ops = make_ops(*args)
        ops.deferred = True
        return ops

    monkeypatch.setattr(engine, "make_ops", deferred)


@pytest.fixture
def stream_device(device, request) -> str:
    """A device whose stream starts the CPU's far calls: a GPU's own, or the thread that stands in for one."""
    if device == "cpu":
        request.getfixturevalue("streamed")
    name: str = device
    return name


@pytest.fixture(autouse=True)
def prompts_at_once(monkeypatch):
    """The first step reads all prompts that may be read, and nothing else, however slow the machine is."""
    monkeypatch.setattr(engine, "READING_S", 600.0)
    monkeypatch.setattr(engine, "MOST_READING", math.inf)
