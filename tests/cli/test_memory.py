"""What `scout doctor MODEL` says of memory before a model is loaded, and `scout generate` after it."""

import json
import re
from dataclasses import replace

from scoutattention.cli import main
from scoutattention.cli.actions.doctor import PROGRAM
from scoutattention.config.fields import format_bytes
from scoutattention.hardware.host import Host, read_memory

from ..models import families
from ..models.formats.gguf_files import write


def test_doctor_says_what_a_model_takes(tiny_models, tmp_path, capsys):
    model = families.make("llama")
    file = write(tmp_path / "tiny.gguf", model)
    numbers = sum(value.numel() for value in model.parameters() if value.dim() == 2)
    for path, weights in ((file, file.stat().st_size), (tiny_models["llama"], 4 * numbers)):
        assert main(["doctor", str(path), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert {"weights", "program", "KV cache", "room"} <= set(report)
        assert report["weights"]["value"].startswith(format_bytes(weights))
        assert f"{format_bytes(4 * numbers)} in float32" in report["weights"]["advice"]
        assert "4,096 tokens" in report["KV cache"]["advice"]
        assert report["room"]["advice"] == "one sequence of the model's 4,096 tokens fits"


def test_doctor_says_where_a_model_has_no_room(tiny_models, monkeypatch, capsys):
    memory = replace(read_memory(Host()), available=PROGRAM + (2 << 20), limit=None)
    monkeypatch.setattr("scoutattention.cli.actions.doctor.read_memory", lambda host: memory)
    assert main(["doctor", str(tiny_models["llama"]), "--json"]) == 0
    assert "tokens fits; --host-memory" in json.loads(capsys.readouterr().out)["room"]["advice"]
    memory = replace(memory, available=PROGRAM)
    assert main(["doctor", str(tiny_models["llama"]), "--json"]) == 1
    assert "use a smaller model" in json.loads(capsys.readouterr().out)["room"]["advice"]


def test_a_report_says_what_memory_was_taken(tmp_path, capsys):
    file = write(tmp_path / "tiny.gguf", families.make("llama"))
    assert main(["generate", str(file), "--prompt", "ab", "--max-tokens", "2", "--ignore-eos"]) == 0
    size = format_bytes(file.stat().st_size)
    assert re.search(rf"Memory +[\d.]+ [MG]iB at most, {size} of it the model's file", capsys.readouterr().err)
