"""`--trace` of commands, and `scout trace`."""

import os
import subprocess
import sys

import pytest

from scoutattention.cli import main
from scoutattention.models.loader import load
from scoutattention.trace.chrome import from_json, to_json
from scoutattention.trace.span import Span
from scoutattention.trace.timeline import Timeline

from ..trace.examples import TIMELINE


@pytest.fixture
def file(tmp_path):
    """A trace of one step."""
    path = tmp_path / "t.json"
    path.write_text(to_json({"scout": TIMELINE}))
    return path


def test_an_answer_is_traced_and_drawn(tiny_models, tmp_path, capsys):
    path, file, page = str(tiny_models["llama"]), tmp_path / "t.json", tmp_path / "t.html"
    memory = ("--device-memory", str(5 * load(path).decoder.shape.block_bytes(8)))
    method = ("--budget", "48", "--block-size", "8", *memory)
    prompt = ("--prompt", "a b c d " * 40, "--max-tokens", "12", "--ignore-eos")
    assert main(["generate", path, *prompt, *method, "--trace", str(file)]) == 0
    assert f"11 decode steps are in {file}" in capsys.readouterr().err
    timeline = from_json(file.read_bytes())["scout"]
    assert len(timeline.steps()) == 11
    assert timeline.arrows
    assert main(["trace", str(file), "--html", str(page), "--step", "3"]) == 0
    assert capsys.readouterr().out.startswith("decode step 3 of 11: ")
    assert "Decode step 3 of 11: " in page.read_text()
    assert "wait far, layer" in page.read_text()


def test_a_picture_is_a_png(file, tmp_path, capsys):
    png = tmp_path / "t.png"
    assert main(["trace", str(file), "--png", str(png)]) == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    assert 5_000 < png.stat().st_size < 150_000
    assert "3.5 ms hidden behind other work, 2 ms waited for" in capsys.readouterr().out


def test_a_trace_is_drawn_without_pytorch(file, tmp_path):
    code = "import sys; from scoutattention.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, "trace", str(file), "--html", str(tmp_path / "t.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read {file}: No such file or directory"),
        (b"\x7fELF", "{file} cannot be drawn: it is not JSON: "),
        (b"{}", "{file} cannot be drawn: it has no list of traceEvents"),
        (b"[]", "{file} cannot be drawn: it has no spans"),
        (to_json({}).encode(), "{file} cannot be drawn: it has no spans"),
        (
            to_json({"a": Timeline((Span("device", "near", 0, 0.0, 1.0),))}).encode(),
            '{file} cannot be drawn: it has no decode step: a span "decode" of the lane "scheduler"',
        ),
    ],
)
def test_a_file_that_is_no_trace_is_refused(content, message, tmp_path, capsys):
    file = tmp_path / "x.json"
    if content is not None:
        file.write_bytes(content)
    assert main(["trace", str(file), "--html", str(tmp_path / "t.html")]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("scout: " + message.format(file=file))
    assert err.count("\n") == 1
    assert not out
    assert not (tmp_path / "t.html").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--html", "/nowhere/t.html"), "cannot write --html /nowhere/t.html: there is no folder /nowhere"),
        (("--png", "/tmp"), "cannot write --png /tmp: it is a folder"),
        (("--step", "2"), "cannot be drawn: --step 2 is outside 1..1, the decode steps of the file"),
        (("--step", "0"), "cannot be drawn: --step 0 is outside 1..1, the decode steps of the file"),
    ],
)
def test_what_cannot_be_drawn_is_refused(args, message, file, capsys):
    assert main(["trace", str(file), *args]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_one_sentence(file, capsys):
    assert main(["trace", str(file), "--html", "/dev/full"]) == 2
    assert "cannot write /dev/full: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("generate", "nowhere", "--prompt", "x"), ("serve", "nowhere")])
def test_a_trace_needs_a_folder_before_a_model_is_loaded(command, capsys):
    assert main([*command, "--trace", "/nowhere/t.json"]) == 2
    assert "cannot write --trace /nowhere/t.json: there is no folder /nowhere" in capsys.readouterr().err
