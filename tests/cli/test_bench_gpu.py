"""`scout bench gpu`, with the CPU standing in for the device."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from scoutattention.attention.step import StepStats
from scoutattention.bench.common.profiler import Event
from scoutattention.bench.gpu import decode as gpu_decode
from scoutattention.bench.gpu.cases import TRACED, LeftOut, other_programs
from scoutattention.bench.gpu.prompts import DummyPrompts
from scoutattention.bench.gpu.timing import Row
from scoutattention.cli import main
from scoutattention.cli.actions import gpu as action
from scoutattention.engine import device, engine
from scoutattention.models.recording import About, Recording
from scoutattention.trace.chrome import from_json

from ..models.test_recording import make_run

TINY = ("--device", "cpu", "--load-format", "dummy", "--shape", "tiny")
SHORT = ("--contexts", "256", "--batches", "1", "--quick")
KEYS = {"engine", "context", "batch", "steps", "ms_per_step", "tokens_per_s", "device_idle_share", "hidden_ms"}
NAMES = ["full", "resident", "fetch", "fetch-ahead", "fetch-all", "compute", "scout-plain", "scout"]


def bench(*args):
    return main(["bench", "gpu", *args])


@pytest.fixture
def recording(tmp_path):
    """Of 64 tokens in blocks of 8, of which a budget of 32 admits 3."""
    about = About("smollm2", "a text", 64, 32, 8, 1, 1, "keys2")
    file = tmp_path / "r"
    file.write_bytes(Recording(about, {"plain": make_run(seed=1), "calibrated": make_run(seed=2)}).to_bytes())
    return str(file)


def test_a_trace_has_steps_of_each_engine(recording, tmp_path, capsys):
    """Of its first case, beside the steps that are timed."""
    file = tmp_path / "trace.json"
    wanted = ("--contexts", "128", "--batches", "1,2", "--quick", "--engines", "full,fetch-all,scout")
    assert bench(*TINY, *wanted, "--replay", recording, "--trace", str(file)) == 0
    timelines = from_json(file.read_text())
    assert list(timelines) == ["full", "fetch-all", "scout"]
    for timeline in timelines.values():
        assert len(timeline.steps()) == TRACED
        assert {span.layer for span in timeline.spans if span.name == "mlp"} == {0, 1, 2, 3}
    assert {arrow.end.name for arrow in timelines["scout"].arrows} == {"far", "wait far"}
    assert not timelines["full"].arrows
    capsys.readouterr()
    assert main(["trace", str(file)]) == 0
    assert capsys.readouterr().out.count("decode step") == 3


def test_json_and_plot(tmp_path, capsys):
    plot = tmp_path / "p.png"
    assert bench(*TINY, *SHORT, "--budget", "192", "--json", "--plot", str(plot)) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [json.loads(line) for line in err.splitlines()[1:]] == report["cases"], "as they came"
    assert [case["engine"] for case in report["cases"]] == NAMES
    assert set(report["cases"][0]) == KEYS | {"unhidden_ms", "link_bytes", "share"}
    assert (report["device"], report["left_out"], report["not_started"]) == ("cpu", [], 0)
    assert report["config"]["budget"] == 192
    assert report["prefill"]["tokens"] == 256
    assert list(report["prefill"]["tokens_per_s"]) == NAMES
    assert (report["kv_dtype"], report["device_limit"]) == ("auto", None)
    assert report["choices"] == "those of random queries"
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_profile_lists_kernels_by_name(monkeypatch, capsys):
    """The CPU runs none: so they are made up."""
    monkeypatch.setenv("COLUMNS", "200")
    events = [Event(f"kernel {n}", n, n + 100.0) for n in range(30)] + [Event("Memcpy DtoD", 0.0, 1.0)] * 12
    monkeypatch.setattr(gpu_decode, "time_steps", with_events(events))
    assert bench(*TINY, *SHORT, "--profile") == 0
    out = capsys.readouterr().out
    line = r"scout, 1 x 256: step (\d+\.\d\d) ms, device busy 0\.04 ms, idle (\d+)%; a layer: 2\.5 kernels, 1\.0 "
    (found,) = re.findall(line, out)
    step_ms, idle = map(float, found)
    assert idle == pytest.approx(100 * (1 - 0.04 / step_ms), abs=100 * 0.01 / step_ms)
    assert re.search(r"kernel 0 +0\.033 +\d+\.\d% +0\.3 ", out)
    assert re.search(r"7 others +0\.204", out)
    assert bench(*TINY, *SHORT, "--profile", "--json") == 0
    said, err = capsys.readouterr()
    first = json.loads(said)["cases"][0]["kernels"][0]
    assert first == {
        "name": "kernel 0",
        "ms": pytest.approx(0.1 / 3),
        "launches": pytest.approx(1 / 3),
        "copies": False,
    }
    assert "kernels" not in json.loads(err.splitlines()[1])


def with_events(events):
    """A function that times steps as before, and says that the device ran these in them."""
    time_steps = gpu_decode.time_steps
    return lambda *args: (
        time_steps(*args)[0],
        gpu_decode.Trace([gpu_decode.Taken(1.0, StepStats())] * gpu_decode.TRACED, events),
    )


def test_a_profile_without_a_gpu_says_so(capsys):
    assert bench(*TINY, *SHORT, "--profile") == 0
    assert capsys.readouterr().out.count("the profiler saw no GPU") == len(NAMES)


def test_only_what_is_asked_for_runs(capsys):
    assert bench(*TINY, *SHORT, "--engines", "scout,full", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [case["engine"] for case in report["cases"]] == list(report["prefill"]["tokens_per_s"]) == ["full", "scout"]


def test_packed_pages_are_named(capsys):
    assert bench(*TINY, *SHORT, "--kv-dtype", "int4") == 0
    assert "; pages in host memory: int4" in capsys.readouterr().out


def test_the_table_says_what_is_replayed_and_what_was_left_out(recording, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    sizes = ("--contexts", "256,128", "--batches", "2,1", "--host-memory", "500KiB", "--minutes", "1")
    assert bench(*TINY, *sizes, "--replay", recording) == 0
    out, err = capsys.readouterr()
    assert "choices: recorded from smollm2 reading 64 tokens of a text" in out
    assert all(name in out for name in NAMES)
    assert "left out: full, 2 x 256: memory: 2 sequences of 307 tokens need 78 blocks of 8 tokens, and 62 fit" in out
    assert "no device kernel is checked" in err


def test_as_many_sequences_as_fit(capsys):
    sizes = ("--contexts", "256", "--host-memory", "1700KiB", "--engines", "full", "--quick", "--json")
    for given, batches in (("most", [5]), ("1, most", [5, 1])):
        assert bench(*TINY, *sizes, "--batches", given) == 0
        assert [case["batch"] for case in json.loads(capsys.readouterr().out)["cases"]] == batches
    for given in ("many", "most,", "most,0"):
        assert bench(*TINY, *sizes, "--batches", given) == 2
        assert "scout: --batches" in capsys.readouterr().err


def test_what_is_given_is_run_in_its_order(capsys):
    assert bench(*TINY, "--contexts", "128,256,64", "--batches", "1,2", "--quick", "--json") == 0
    cases = json.loads(capsys.readouterr().out)["cases"][:: len(NAMES)]
    assert [(case["batch"], case["context"]) for case in cases] == [(n, c) for n in (2, 1) for c in (128, 256, 64)]


def test_what_was_not_started_is_one_line(capsys):
    assert bench(*TINY, "--contexts", "256", "--batches", "1,2", "--minutes", "0") == 0
    out, err = capsys.readouterr()
    assert "16 cases were not started: raise --minutes" in out
    assert "left out" not in out + err


def test_an_engine_that_failed_is_told_at_once_and_by_the_exit_code(monkeypatch, capsys):
    place = DummyPrompts.place

    def placed(prompts, engine, scout, context, batch):
        if scout.ablation.on_miss == "fetch":
            raise RuntimeError("a bug")
        return place(prompts, engine, scout, context, batch)

    monkeypatch.setattr(DummyPrompts, "place", placed)
    assert bench(*TINY, *SHORT) == 1
    out, err = capsys.readouterr()
    assert "left out: fetch-ahead, 1 x 256: failed: RuntimeError: a bug" in out
    assert '{"engine": "fetch", "context": 256, "batch": 1, "why": "failed: RuntimeError: a bug"}' in err.splitlines()
    assert "scout-plain" in out


def test_what_was_told_before_an_interruption_stays(monkeypatch, capsys):
    def placed(prompts, engine, scout, context, batch):
        if scout.ablation.on_miss == "fetch":
            raise KeyboardInterrupt
        return place(prompts, engine, scout, context, batch)

    place = DummyPrompts.place
    monkeypatch.setattr(DummyPrompts, "place", placed)
    assert bench(*TINY, *SHORT) == 130
    told = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["engine"] for line in told[1:-1]] == ["full", "resident"]


def test_the_profiler_is_told_to_let_go(monkeypatch):
    monkeypatch.setenv("TEARDOWN_CUPTI", "")
    monkeypatch.delenv("TEARDOWN_CUPTI")
    assert bench(*TINY, *SHORT, "--minutes", "0") == 0
    assert os.environ["TEARDOWN_CUPTI"] == "1"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "give either a model, or --load-format dummy"),
        (("m", "--load-format", "dummy"), "give either a model, or --load-format dummy"),
        (("m", "--replay", "r"), "--replay needs --load-format dummy"),
        ((*TINY, "--contexts", "100"), "100 tokens are not a multiple of block_size=32"),
        ((*TINY, "--contexts", "0,32"), "--contexts='0,32': 0 is below the least value 1"),
        ((*TINY, "--shape", "gpt"), "no model 'gpt' is known"),
        ((*TINY, "--replay", "absent"), "absent is not a recording"),
        ((*TINY, "--plot", "absent/a.png"), "there is no folder absent"),
        (("absent", "--device", "cpu"), "there is no model 'absent'"),
        ((*TINY, "--kv-dtype", "int2"), "'int2'"),
        ((*TINY, "--engines", "scout,vllm"), "--engines='scout,vllm': 'vllm' is not one of full, resident,"),
        ((*TINY, "--engines", "scout,transformers"), "--engines: transformers needs a GPU, and transformers: run pip"),
        ((*TINY, "--device-limit", "24 parrots"), "cannot read '24 parrots' as a size"),
        ((*TINY, "--device-limit", "24GiB"), "--device-limit=25769803776 bytes is for a GPU"),
    ],
)
def test_mistakes_are_named(args, message, capsys):
    assert bench(*SHORT, *args) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


def test_what_a_recording_cannot_give_is_named(recording, capsys):
    assert bench(*TINY, "--replay", recording, "--contexts", "56") == 2
    assert "--contexts: 56 tokens are fewer than 64" in capsys.readouterr().err
    assert bench(*TINY, *SHORT, "--replay", recording, "--budget", "64") == 2
    assert "--budget=64 is not the recording's 32" in capsys.readouterr().err


def test_a_model_is_read_within_its_limit(tiny_models, capsys):
    model = str(tiny_models["llama"])
    assert bench(model, "--device", "cpu", *SHORT, "--budget", "128", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["weights"], report["choices"]) == (model, "its own")
    assert [case["engine"] for case in report["cases"]] == NAMES
    assert bench(model, "--device", "cpu", "--contexts", "5000") == 2
    assert "above the model's own limit of 4096" in capsys.readouterr().err


def test_help_and_wrong_arguments_do_not_load_torch():
    code = (
        "import sys\n"
        "from scoutattention.cli import main\n"
        "codes = [main(['bench', 'gpu', *call]) for call in (['--help'], [], ['m', '--contexts', '1k'])]\n"
        "assert codes == [0, 2, 2], codes\n"
        "assert 'torch' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr


def test_without_a_gpu_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench("--load-format", "dummy", "--shape", "tiny") == 2
    err = capsys.readouterr().err
    assert "device='cuda' needs a GPU" in err
    assert err.count("\n") == 1


@pytest.fixture
def made_up(monkeypatch):
    """A GPU that is the CPU. What its kernels are found to do: its link brings a megabyte a second."""
    rows = [Row("copy from host", "1", seconds=1.0, moved=1 << 20)]
    for module in (device, engine, gpu_decode, action):
        monkeypatch.setattr(module, "find_device", lambda *which: torch.device("cpu"))
    monkeypatch.setattr(action, "other_programs", lambda base: ())
    monkeypatch.setattr(action, "survey", lambda timer, tell, *, quick: (rows, 2.0))
    monkeypatch.setattr(action, "Timer", lambda repeats: None)
    monkeypatch.setattr(action, "gpu_facts", lambda: {"device": "made up"})
    return rows


@pytest.mark.parametrize(("error", "code"), [(1e-4, 0), (0.5, 1)])
def test_a_wrong_kernel_is_told(made_up, capsys, error, code):
    made_up.insert(0, Row("partial", "B 1", error, 1e-2))
    assert bench(*TINY[2:], *SHORT, "--json") == code
    report = json.loads(capsys.readouterr().out)
    assert report["device"] == "made up"
    assert report["kernels"][0]["right"] == (code == 0)
    assert report["link_bytes_per_second"] == 1 << 20


@pytest.mark.parametrize("installed", [True, False])
def test_other_programs_run_on_a_gpu_where_they_are_installed(made_up, monkeypatch, capsys, installed):
    monkeypatch.setattr(action, "other_programs", lambda base: other_programs(base)[:1])
    monkeypatch.setattr(action, "find_spec", lambda name: name if installed else None)
    monkeypatch.setenv("COLUMNS", "200")
    assert bench(*TINY[2:], *SHORT, "--no-kernels") == 0
    out = capsys.readouterr().out
    assert ("transformers" in out) == installed
    assert re.search(r"scout +256 +1 +[\d.]+ +[\d.]+ +[\d,]+ ", out), "prompt tokens a second are the sixth column"


def test_what_reads_no_prompt_is_told(monkeypatch, capsys):
    left = LeftOut("full", 256, 1, "memory: too small")
    monkeypatch.setattr(action, "prefill_speeds", lambda bench, engines: (256, {}, [left]))
    assert bench(*TINY, *SHORT, "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(err.splitlines()[1]) == json.loads(out)["left_out"][0] == left._asdict()


def test_kernels_can_be_left_out(made_up, capsys):
    made_up.append(Row("partial", "B 1", 0.5, 1e-2))
    assert bench(*TINY[2:], *SHORT, "--json", "--no-kernels") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["device"] == "made up"
    assert not {"kernels", "link_bytes_per_second"} & set(report)
    assert len(report["cases"]) == len(NAMES)
