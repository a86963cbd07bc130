"""The timing of decode steps, on a tiny model."""

import sys

from scoutattention.bench.decode import step
from scoutattention.models.loader import load


def test_every_case_has_a_line(monkeypatch, tiny_models, capsys):
    monkeypatch.setattr(step, "load", lambda model, dtype: load(str(tiny_models["llama"]), dtype))
    sizes = ["--context", "300", "--batch", "1", "2", "--budget", "96", "--steps", "4"]
    monkeypatch.setattr(sys, "argv", ["step", *sizes, "--cases", "one", "int4", "slots", "full"])
    step.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("float32 context 300 batch 1 one      : median ")
    assert lines[7].startswith("float32 context 300 batch 2 full     : median ")
