import json
from pathlib import Path

import pytest

from scoutattention.cli import main
from scoutattention.eval.text import code, prose, references


@pytest.fixture
def story(tmp_path):
    file = tmp_path / "story.txt"
    file.write_text("".join(f"Chapter {i}: the cache had {i * i} blocks. " for i in range(150)))
    return str(file)


@pytest.fixture
def tiny(stored_here, tiny_models, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return str(tiny_models["llama"])


def test_json_says_what_was_fitted_and_where_it_is(tiny, capsys, story, stored_here):
    args = ["calibrate", tiny, "--text", story, "--lookahead", "2", "--lookahead", "1", "--dims", "8", "--json"]
    assert main(args) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == ""
    assert (report["model"], report["texts"]) == (tiny, [story])
    assert [(fit["lookahead"], fit["dims"]) for fit in report["fits"]] == [(2, 8), (1, 8)]
    assert {Path(fit["file"]) for fit in report["fits"]} == set(stored_here.iterdir())
    layer = report["fits"][0]["layers"][1]
    assert set(layer) == {"layer", "plain", "calibrated", "kept"}
    assert set(layer["plain"]) == set(layer["calibrated"]) == {"cosine", "error"}


def test_fidelity_says_which_calibration_it_used(tiny, capsys, story, stored_here):
    main(["calibrate", tiny, "--text", story, "--dims", "8"])
    table = capsys.readouterr().out
    (file,) = stored_here.iterdir()
    assert file.name in table.replace("\n", "")
    assert "1 ahead" in table
    args = ["eval", "fidelity", tiny, "--text", story, "--context", "200", "--steps", "2", "--budget", "96", "--json"]
    for more, used in (([], True), (["--calibration", "off"], False)):
        assert main([*args, *more]) == 0
        name = json.loads(capsys.readouterr().out)["calibration"]
        assert (name is not None and name.startswith(file.name)) == used
        assert main([*args[:-1], *more]) == 0
        assert f"Calibration: {name or 'none'}" in capsys.readouterr().out


def test_wrong_arguments_are_one_sentence(tiny, capsys, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("too short")
    for args, message in (
        (["--dims", "0"], "--dims='0'"),
        (["--dims", "all"], "--dims='all'"),
        (["--rope-scaling", "yarn"], "--rope-scaling='yarn'"),
        (["--rope-scaling", "{}"], "rope_type"),
        (["--lookahead", "0"], "--lookahead"),
        (["--text", str(tmp_path / "absent")], "No such file"),
        (["--text", str(short)], "needs 4096: give more --text"),
    ):
        assert main(["calibrate", tiny, *args]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert message in err


def test_pythons_own_texts_are_not_those_that_are_measured_on():
    texts = references()
    measured = prose().text + code().text
    assert len(texts) == len({text.name for text in texts})
    for text in texts:
        assert len(text.text) > 500, text.name
        assert text.text[:200] not in measured
