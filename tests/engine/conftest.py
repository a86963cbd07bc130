"""Engines whose kernels only queue work, as a device's do."""

import pytest

from scoutattention.engine import device, engine
from scoutattention.engine.device import make_ops
from scoutattention.runtime.host_functions import InlineStream


@pytest.fixture
def streamed(monkeypatch):
    """Engines of device kernels queue host functions, on a stream that calls them at once."""

    def deferred(*args):
        ops = make_ops(*args)
        ops.deferred = True
        return ops

    monkeypatch.setattr(engine, "make_ops", deferred)
    monkeypatch.setattr(device.HostFunctions, "find", InlineStream)


@pytest.fixture
def stream_device(device, request) -> str:
    """A device whose stream starts the CPU's far calls: a GPU's own, or the thread that stands in for one."""
    if device == "cpu":
        request.getfixturevalue("streamed")
    name: str = device
    return name
