"""Predictions beside measured steps: `scout plan --check`."""

import json
from pathlib import Path

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
    assert "20.40 / 19.60" in out
    assert "Not predicted here: resident." in out
    assert main([*ON_H100, file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    full, scout = (case["pairs"] for case in found["cases"])
    assert set(full) == {"step"}
    assert scout["hidden"]["measured"] == pytest.approx(6.3e-3)
    assert scout["step"]["predicted"] == pytest.approx(13.3e-3, rel=0.02), "with pages in 8 bits"
    assert found["median_error"]["step"] == pytest.approx(0.055, abs=0.01)
    assert found["median_error"]["share"] is None


def slots_case(ms, context, **more):
    return case("scout-slots", ms, context, 4, cache_dtype="float32", **more)


def compared(capsys, *args):
    """What --check prints as JSON: the pairs of each case, and the median errors."""
    assert main([*ON_A_CPU, *args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return [one["pairs"] for one in found["cases"]], found["median_error"]


def test_slots_on_a_cpu_are_compared(written, capsys):
    """The file gives the dtype, the settings of the method and the slots."""
    method = {"budget": 256, "lookahead": 1, "max_cpu_share": 0.2}
    far = slots_case(50.0, 4096, hidden_ms=2.0, unhidden_ms=0.01, share=0.1)
    file = written(far, slots_case(50.0, 1024), case("transformers", 90.0), method=method, slots=4)
    (far, near), errors = compared(capsys, file)
    assert far["share"] == {"measured": 0.1, "predicted": 0.2}
    assert far["hidden"]["predicted"] > 0
    assert set(near) == {"step"}
    assert errors["share"] == pytest.approx(1.0)
    assert main([*ON_A_CPU, file]) == 0
    out = capsys.readouterr().out
    assert "float32, budget 256, lookahead 1, slots 4x, limit 0.2" in out
    assert "10.0% / 20.0%, +100%" in out
    assert "Not predicted here: transformers." in out


def test_files_are_compared_together(written, tmp_path, capsys):
    first = tmp_path / "first.json"
    first.write_text(Path(written(slots_case(50.0, 4096))).read_text())
    cases, _ = compared(capsys, written(slots_case(60.0, 8192)), "--check", str(first))
    assert [pairs["step"]["measured"] for pairs in cases] == [0.06, 0.05]


def test_settings_that_a_file_contradicts_are_refused(written, capsys):
    file = written(slots_case(50.0, 4096), method={"budget": 256})
    assert main([*ON_A_CPU, file, "--budget", "512"]) == 2
    assert "was measured with budget=256, which --budget contradicts" in capsys.readouterr().err
    assert main([*ON_A_CPU, file, "--dtype", "bfloat16"]) == 2
    assert "was measured with dtype=float32, which --dtype contradicts" in capsys.readouterr().err
    assert main([*ON_A_CPU, file, "--budget", "256", "--dtype", "float32"]) == 0


def test_a_file_of_other_engines_is_refused(written, capsys):
    assert main([*ON_A_CPU, written(case("llama.cpp", 1.0))]) == 2
    assert "predicted for desktop: dense, full, scout, scout-slots" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"cases": [{"engine": "full"}]}', '{"cases": 3}'),
        *('{"cases": [], "method": 3}', '{"cases": [], "slots": "a"}', '{"cases": [], "steps": ["a", 2]}'),
    ],
)
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
