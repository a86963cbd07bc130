"""What `scout doctor MODEL` says of memory before a model is loaded, and `scout generate` after it."""

import json
import re
from dataclasses import replace

import pytest

from scoutattention.cli import main
from scoutattention.cli.actions.doctor import PROGRAM
from scoutattention.config.fields import format_bytes
from scoutattention.hardware.host import Host, read_memory

from ..models import families
from ..models.formats.gguf_files import write
from ..models.formats.quantised import checkpoints


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


@pytest.mark.parametrize(
    ("name", "bits", "where"),
    [
        ("gptq", 4.5, "in float32 and, quantised with gptq, in blocks"),
        ("awq", 5, "in float32 and, quantised with awq, in blocks"),
        ("packed-8", 8.5, "in float32 and, quantised with compressed-tensors, in blocks"),
        ("fp8-blocks", 32, "in float32, expanded from fp8"),
    ],
)
def test_doctor_counts_quantised_matrices(name, bits, where, tmp_path, capsys):
    numbers = checkpoints.write(tmp_path, name)
    rounded = sum(value.numel() for key, value in numbers.items() if "_proj" in key)
    others = sum(value.numel() for value in numbers.values() if value.dim() == 2) - rounded
    assert main(["doctor", str(tmp_path), "--json"]) == 0
    weights = json.loads(capsys.readouterr().out)["weights"]
    assert weights["value"] == f"{format_bytes(rounded * bits / 8 + 4 * others)} {where}"


def test_doctor_says_what_rounding_the_weights_saves(tiny_models, capsys):
    assert main(["doctor", str(tiny_models["llama"]), "--json"]) == 0
    advice = json.loads(capsys.readouterr().out)["weights"]["advice"]
    sizes = [
        format_bytes(sum(value.numel() for value in families.make("llama").parameters() if value.dim() == 2) * bits / 8)
        for bits in (8.5, 5)
    ]
    assert advice.endswith(f"; on a CPU {sizes[0]} with --weights int8, {sizes[1]} with --weights int4")


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
