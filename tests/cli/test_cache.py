import json
import subprocess
import sys

import pytest

from scoutattention.cli import main
from scoutattention.models.cache_folder import publish, working_folder

NAME = "a-model-with-a-long-name.Q4_K_M-0123456789ab-float32"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "scoutattention"
    with working_folder(folder) as work:
        (work / "model").mkdir()
        (work / "model" / "weights").write_bytes(b"x" * 2048)
        publish(work / "model", folder / NAME, {})
    (folder / "calibrations").mkdir()
    (folder / "calibrations" / "abc-ahead1.safetensors").write_bytes(b"x" * 30)
    return folder


def scout(capsys, *args):
    code = main(["cache", *args])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_list_shows_models_and_calibrations(folder, capsys):
    code, out, _ = scout(capsys, "list")
    assert code == 0
    assert all(word in out for word in (NAME, "float32", "2.1 KiB", "abc-ahead1.safetensors", "30 B", str(folder)))


def test_list_as_json(folder, capsys):
    about = json.loads(scout(capsys, "list", "--json")[1])
    assert about["folder"] == str(folder)
    assert [(entry["name"], entry["kind"], entry["dtype"]) for entry in about["entries"]] == [
        (NAME, "model", "float32"),
        ("abc-ahead1.safetensors", "calibration", None),
    ]


def test_clear_takes_names_or_all(folder, capsys):
    code, out, _ = scout(capsys, "clear", NAME)
    assert (code, out.split(",")[0]) == (0, "cleared 1 of 2")
    assert not (folder / NAME).exists()
    assert scout(capsys, "clear", "--all")[1].startswith("cleared 1 of 1, 30 B")
    assert "nothing is kept" in scout(capsys, "list")[1]
    assert scout(capsys, "clear", "--all")[0] == 0


def test_what_was_cleared_as_json(folder, capsys):
    about = json.loads(scout(capsys, "clear", "--all", "--json")[1])
    assert {entry["name"] for entry in about["entries"]} == {NAME, "abc-ahead1.safetensors"}


@pytest.mark.parametrize(
    ("args", "named"), [([], "or --all"), (["--all", NAME], "not both"), ([NAME, "absent"], "has no 'absent'")]
)
def test_what_cannot_be_cleared_is_named_and_nothing_is_cleared(args, named, folder, capsys):
    code, out, err = scout(capsys, "clear", *args)
    assert (code, out) == (2, "")
    assert named in err
    assert (folder / NAME).is_dir()


def test_a_name_outside_the_folder_is_not_cleared(folder, capsys):
    (folder.parent / "precious").mkdir()
    assert scout(capsys, "clear", "../precious")[0] == 2
    assert (folder.parent / "precious").is_dir()


def test_pytorch_is_not_loaded(folder):
    script = (
        "import sys; from scoutattention.cli import main; main(['cache', 'list']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)
