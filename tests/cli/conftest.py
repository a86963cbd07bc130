import os

import pytest

from scoutattention.cli.actions import chat, generate

from .fake import FakeLLM


@pytest.fixture
def fake_engine(monkeypatch):
    """`scout generate` and `scout chat` have a fake engine, and an environment without settings."""
    for action in (generate, chat):
        monkeypatch.setattr(action, "LLM", FakeLLM)
    monkeypatch.setattr(FakeLLM, "raises", None)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("COLUMNS", "200")
    for name in [name for name in os.environ if name.startswith("SCOUT_")]:
        monkeypatch.delenv(name)
