"""`scout bench decode`, on a tiny model."""

import json
import re

import pytest

from scoutattention import ScoutConfig
from scoutattention.bench.decode.job import Traced
from scoutattention.bench.decode.measure import Measured, Result
from scoutattention.cli import main
from scoutattention.cli.actions import decode as action
from scoutattention.trace.span import Span
from scoutattention.trace.timeline import Timeline

KEYS = {"engine", "dtype", "cache_dtype", "calibration", "context", "batch", "budget"}
NUMBERS = {"ms_per_step", "tokens_per_s", "prefill_tokens_per_s", "rss_mib", "peak_mib"}
SHORT = ("--engines", "scout,dense", "--rounds", "1", "--steps", "1", "--budget", "96")


@pytest.fixture
def measured(monkeypatch):
    """Makes every case one of two canned results, and returns the jobs that were measured."""
    jobs = []

    def measure(workload, job, watch):
        jobs.append((workload, job))
        watch("working")
        sizes = (job.dtype, "float16", "the prompt's own", len(job.prompts[0]), len(job.prompts))
        results = [Result(engine, *sizes, 96, 20.0, 50.0, 300.0, 1234.0, 1300.0, 0.5) for engine in workload.engines]
        spans = Span("device", "near", 0, 0.0, 0.016), Span("device", "mlp", 0, 0.016, 0.024)
        return Measured(results, {"scout": Traced(Timeline(spans), [0.011, 0.013], [0.008, 0.012])})

    monkeypatch.setattr(action, "measure", measure)
    return jobs


def test_a_case_runs_and_is_written(tiny_models, tmp_path, capsys):
    files = ("--trace", str(tmp_path / "t.json"), "--plot", str(tmp_path / "p.png"))
    args = ("--contexts", "64", "--batches", "1,4", "--largest", "100", "--json", *files)
    assert main(["bench", "decode", str(tiny_models["llama"]), *SHORT, *args]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [case["engine"] for case in report["cases"]] == ["scout", "dense"]
    assert all(set(case) > KEYS | NUMBERS for case in report["cases"])
    assert report["cases"][0]["same_tokens"] == 1, "the context is within the budget"
    assert [case["calibration"] for case in report["cases"]] == ["none", "none"], "the context is within the budget"
    assert report["left_out"] == [{"context": 64, "batch": 4}]
    assert report["method"] == {"budget": 96, "lookahead": 1, "max_cpu_share": 0.085}
    assert (report["slots"], report["steps"]) == (2.0, [1, 2]), "the first step is not counted"
    assert "left out: 4 x 64 tokens, above --largest 100" in err
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert {event["args"]["name"] for event in events if event["name"] == "process_name"} == {"scout", "dense"}
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_every_sequence_reads_its_own_part_of_the_text(measured, tiny_models, capsys):
    path = str(tiny_models["llama"])
    assert main(["bench", "decode", path, "--contexts", "64,128", "--batches", "2", *SHORT]) == 0
    (_, short), (workload, long) = measured
    assert [len(prompt) for prompt in (*short.prompts, *long.prompts)] == [64, 64, 128, 128]
    assert long.prompts[0] == short.prompts[0] + short.prompts[1]
    assert long.prompts[0] != long.prompts[1]
    assert long.max_len == 128 + 1 + 2 + 2 * workload.traced
    out = capsys.readouterr().out
    assert "near" not in out, "stages are in --json and --trace alone"
    assert re.search(r"scout: float32 weights, float16 cache,\s+calibration: the prompt's own", out)


def test_the_method_of_the_engines_that_have_one_can_be_changed(measured, tiny_models):
    more = ("--lookahead", "2", "--max-cpu-share", "off", "--slots", "0.25")
    assert main(["bench", "decode", str(tiny_models["llama"]), "--contexts", "64", *SHORT, *more]) == 0
    job = measured[0][1]
    assert (job.scout, job.slots) == (ScoutConfig(budget=96, lookahead=2, max_cpu_share=None), 0.25)


def test_what_is_not_there_is_left_out_unless_it_was_asked_for(measured, tiny_models, capsys):
    path = str(tiny_models["llama"])
    short = ("--contexts", "64", "--batches", "1")
    assert main(["bench", "decode", path, *short]) == 0
    assert "llama.cpp" not in measured[0][0].engines
    assert "left out: llama.cpp" in capsys.readouterr().err
    assert main(["bench", "decode", path, *short, "--engines", "llama.cpp"]) == 2
    assert "--engines: llama.cpp" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--engines", "vllm"), "'vllm' is not one of scout, scout-slots, dense, transformers, "),
        (("--contexts", "1k"), "--contexts='1k' is not a list of numbers"),
        (("--largest", "100"), "--largest=100 leaves out every case"),
        (("--budget", "32"), "budget=32 tokens is below 96"),
        (("--budget", "all"), "--budget all is full attention, which is the engine dense"),
        (("--trace", "/nowhere/t.json"), "there is no folder /nowhere"),
    ],
)
def test_mistakes_are_named_before_anything_runs(measured, tiny_models, args, message, capsys):
    assert main(["bench", "decode", str(tiny_models["llama"]), *args]) == 2
    assert message in capsys.readouterr().err
    assert not measured
