"""Predictions beside measured steps: `scout plan --check`."""

import json

import pytest

from scoutattention.cli import main

ON_H100 = ("plan", "qwen3-8b", "--hardware", "h100-16-cores", "--check")
ON_A_CPU = ("plan", "smollm2-135m", "--hardware", "desktop", "--check")


def case(engine, ms, context=32768, batch=8, **more):
    return {"engine": engine, "context": context, "batch": batch, "ms_per_step": ms, **more}


@pytest.fixture
def written(tmp_path):
    """Writes what a benchmark printed, and gives the path."""

    def write(*cases, **more):
        file = tmp_path / "bench.json"
        file.write_text(json.dumps({"cases": cases, **more}))
        return str(file)

    return write


def test_measured_steps_are_compared(written, capsys):
    file = written(
        case("full", 20.4),
        case("scout-plain", 14.3, hidden_ms=6.3, unhidden_ms=1.0),
        case("resident", 21.5),
        kv_dtype="int8",
    )
    assert main([*ON_H100, file]) == 0
    out = capsys.readouterr().out
    assert "20.40 / 20.30" in out
    assert "Not predicted here: resident." in out
    assert main([*ON_H100, file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    full, scout = found["cases"]
    assert (full["waited_s"], scout["far_s"]) == (None, pytest.approx(7.3e-3))
    assert scout["predicted_s"] == pytest.approx(14.6e-3, rel=0.02), "with pages in 8 bits"
    assert found["median_error"] < 0.05


def test_a_cpu_has_no_slots_to_compare(written, capsys):
    file = written(case("dense", 60.0, 1024, 4), case("scout-slots", 50.0, 1024, 4), case("transformers", 90.0))
    assert main([*ON_A_CPU, file]) == 0
    assert "Not predicted here: scout-slots, transformers." in capsys.readouterr().out
    assert main([*ON_A_CPU, written(case("llama.cpp", 1.0))]) == 2
    assert "has none of the engines that are predicted for desktop: dense, full, scout" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cases": [{"engine": "full"}]}', '{"cases": 3}'])
def test_a_file_without_cases_is_refused(text, tmp_path, capsys):
    file = tmp_path / "other.json"
    file.write_text(text)
    assert main([*ON_H100, str(file)]) == 2
    assert "has no measured cases: write one with `scout bench decode MODEL --json`" in capsys.readouterr().err


def test_what_check_would_leave_out_is_refused(written, tmp_path, capsys):
    assert main([*ON_H100, str(tmp_path / "none.json")]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert main([*ON_H100, written(case("full", 20.0)), "--explore"]) == 2
    assert "leave --explore, --plot and --trace out" in capsys.readouterr().err
