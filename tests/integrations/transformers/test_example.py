"""The example that shows a session runs as it stands."""

import runpy
import sys
from pathlib import Path

from ...tiny import save
from .models import make

EXAMPLE = Path(__file__).parents[3] / "examples" / "in_transformers.py"


def test_the_example(tmp_path, monkeypatch, capsys):
    save(make("qwen3"), tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("A line of the report. " * 30)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(tmp_path), str(text), "What is it?", "128"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "Prompt    673 tokens" in capsys.readouterr().out
