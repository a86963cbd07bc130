import json
import subprocess
import sys
from pathlib import Path

import pytest

from scoutattention.cli import main
from scoutattention.cli.actions.texts import read_texts
from scoutattention.eval.fidelity.ablation import ROWS
from scoutattention.eval.fidelity.report import SCALARS

SIZES = ("--context", "200", "--steps", "3", "--budget", "96")


@pytest.fixture
def story(tmp_path):
    file = tmp_path / "story.txt"
    file.write_text("Once upon a time there was a cache, and it did not fit. " * 5)
    return str(file)


@pytest.fixture
def fidelity(tiny_models, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *args: main(["eval", "fidelity", str(tiny_models["llama"]), *args])


def the_error(fidelity, capsys, *args):
    assert fidelity(*args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("scout: ")
    assert err.count("\n") == 1
    return err


def test_json_of_one_text(fidelity, capsys, story, tiny_models):
    assert fidelity("--text", story, *SIZES, "--ablation", "true_query_layers=", "--json") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == ""
    assert set(report) == {
        "model",
        "context",
        "steps",
        "text",
        *SCALARS,
        "kl",
        "share",
        "layers",
        "calibration",
        "config",
    }
    assert (report["model"], report["text"]) == (str(tiny_models["llama"]), story)
    assert (report["context"], report["steps"], len(report["kl"])) == (200, 3, 3)
    assert report["config"]["device_memory"] == "slots", "the method is what is measured"
    assert len(report["share"]) == 3
    assert sum(report["share"]) / 3 == pytest.approx(report["cpu_share"], abs=0.02)
    assert (report["config"]["budget"], report["config"]["ablation"]["true_query_layers"]) == (96, [])


def test_json_of_an_ablation_over_pythons_own_texts(fidelity, capsys):
    assert fidelity(*SIZES, "--ablate", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [item["text"] for item in report["texts"]] == ["python-topics", "python-sources", "python-mixed"]
    assert [row["name"] for row in report["texts"][0]["rows"]] == [row.name for row in ROWS]
    assert len(report["mean"]) == len(report["worst"]) == len(ROWS)


def test_table_plot_and_page(fidelity, capsys, story, tmp_path):
    plot, html = tmp_path / "a.png", tmp_path / "a.html"
    assert fidelity("--text", story, *SIZES, "--plot", str(plot), "--html", str(html)) == 0
    out = capsys.readouterr().out
    assert "Far recall" in out
    assert "scout" in out
    assert plot.read_bytes().startswith(b"\x89PNG")
    page = html.read_text()
    assert "<td>block_size</td><td>32</td>" in page
    assert "<td>context</td><td>200</td>" in page


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--steps", "0"], "steps=0 is below the least value 1"),
        (["--context", "4090", "--steps", "7"], "4097 tokens, above the model's limit of 4096"),
        (["--context", "60", "--steps", "5", "--max-model-len", "64"], "above max_model_len of 64"),
        (["--context", "400"], "has 280 tokens, and 465 are needed"),
        (["--text", "absent.txt"], "cannot read text file absent.txt: No such file"),
        (["--budget", "32"], "budget=32 tokens is below 96"),
        (["--ablate", "--ablation", "digest=minmax"], "leave out --ablation digest=minmax"),
        (["--ablate", "--guard", "off"], "leave out --guard"),
        (["--ablation", "digest=best"], "digest='best' is not one of two-stage, keys2, minmax, exact"),
        (["--ablation", "correct_far=maybe"], "--ablation correct_far='maybe' is not true or false"),
        (["--ablation", "true_query_layers=0,x"], "'0,x' is not a list of layer numbers"),
        (["--ablation", "budget=3"], "is not NAME=VALUE with one of on_miss"),
        (["--ablate", "--device-memory", "1GiB"], "leave out --device-memory"),
        (["--ablate", "--budget", "all"], "--budget"),
        (["--plot", "absent/a.png"], "cannot write --plot absent/a.png: there is no folder absent"),
        (["--temperature", "1"], "--temperature"),
    ],
)
def test_errors_are_one_sentence(fidelity, capsys, story, args, message):
    assert message in the_error(fidelity, capsys, "--text", story, *args)


def test_output_that_cannot_be_written_is_refused_before_anything_runs(fidelity, capsys, story, tmp_path, monkeypatch):
    monkeypatch.setattr("scoutattention.cli.fidelity.load_action", None)
    assert "it is a folder" in the_error(fidelity, capsys, "--text", story, *SIZES, "--plot", str(tmp_path))


def test_without_matplotlib_the_extra_is_named(fidelity, capsys, story, monkeypatch):
    monkeypatch.setattr("scoutattention.cli.output.find_spec", lambda name: None)
    assert "scout-attention[plot]" in the_error(fidelity, capsys, "--text", story, *SIZES, "--plot", "a.png")


def test_the_same_text_twice_is_one(story):
    (text,) = read_texts([Path(story), Path(story)])
    assert text.name == story


def test_help_and_wrong_arguments_do_not_load_torch():
    code = (
        "import sys\n"
        "from scoutattention.cli import main\n"
        "calls = (['--help'], ['m', '--steps', 'x'], ['m', '--ablate', '--guard', 'off'])\n"
        "codes = [main(['eval', 'fidelity', *call]) for call in calls]\n"
        "assert codes == [0, 2, 2], codes\n"
        "assert 'torch' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "--ablation" in run.stdout


def test_weights_are_compared_with_float32(tiny_models, story, capsys):
    size = ("--context", "40", "--steps", "5")
    args = ["eval", "weights", str(tiny_models["llama"]), "--text", story, "--weights", "auto,int8,int4", *size]
    assert main([*args, "--json"]) == 0
    rows = {row.pop("weights"): row for row in json.loads(capsys.readouterr().out)["weights"]}
    assert list(rows) == ["auto", "int8", "int4"]
    assert 8.5 / 32 * rows["auto"]["nbytes"] == rows["int8"]["nbytes"] > rows["int4"]["nbytes"]
    assert abs(rows["auto"]["kl_mean"]) < 1e-5 < rows["int8"]["kl_mean"] < rows["int4"]["kl_mean"]
    assert rows["int8"]["kl_most"] > rows["int8"]["kl_mean"]
    assert main(args) == 0
    assert "KL at most" in capsys.readouterr().out


def test_ways_to_keep_weights_are_named(tiny_models, capsys):
    assert main(["eval", "weights", str(tiny_models["llama"]), "--weights", "int2"]) == 2
    assert "'int2' is not one of auto, int8, int4" in capsys.readouterr().err
