"""What the cache folder keeps, and what is left there by processes that are gone."""

import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from scoutattention.errors import CacheFolderError
from scoutattention.models.cache_folder import (
    MANIFEST,
    entries,
    is_complete,
    mark_used,
    publish,
    remove,
    remove_abandoned,
    working_folder,
)

from . import families
from .formats.gguf_files import write


def make(folder, name="tiny-0123456789ab-float32"):
    with working_folder(folder) as work:
        (work / "model").mkdir()
        (work / "model" / "weights").write_bytes(b"x" * 100)
        publish(work / "model", folder / name, {"source": "tiny.gguf"})
    return folder / name


def test_a_working_folder_is_gone_in_the_end(tmp_path):
    with working_folder(tmp_path / "cache") as work:
        assert work.parent == tmp_path / "cache"
        assert entries(tmp_path / "cache") == []
    assert list((tmp_path / "cache").iterdir()) == []


def left_behind(folder, name=".converting-gone", seconds=0.0, lock=True):
    path = folder / name
    (path / "model").mkdir(parents=True)
    (path / "model" / "weights").write_bytes(b"x" * 50)
    if lock:
        (path / "lock").touch()
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_what_a_gone_process_left_is_removed(tmp_path):
    left_behind(tmp_path)
    left_behind(tmp_path, ".converting-older", seconds=100, lock=False)
    young = left_behind(tmp_path, ".converting-young", lock=False)
    taken = left_behind(tmp_path, ".converting-taken")
    with (taken / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert {entry.name for entry in entries(tmp_path)} == {".converting-gone", ".converting-older"}
        remove_abandoned(tmp_path)
        assert sorted(tmp_path.iterdir()) == [taken, young]
    remove_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == [young]


def test_files_that_are_missing_or_shorter_are_found(tmp_path):
    directory = make(tmp_path)
    assert is_complete(directory)
    (directory / "weights").write_bytes(b"x" * 99)
    assert not is_complete(directory)
    (directory / "weights").unlink()
    assert not is_complete(directory)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"files": [1]}', '{"files": {"weights": "100"}}', "\0"])
def test_a_damaged_list_of_files_is_found(content, tmp_path):
    directory = make(tmp_path)
    (directory / MANIFEST).write_text(content)
    assert not is_complete(directory)


def test_a_damaged_directory_is_replaced_and_a_whole_one_stays(tmp_path):
    directory = make(tmp_path)
    inode = directory.stat().st_ino
    make(tmp_path)
    assert directory.stat().st_ino == inode
    (directory / "weights").unlink()
    make(tmp_path)
    assert is_complete(directory)


def test_entries_say_what_is_kept(tmp_path):
    model = make(tmp_path, "my-model.Q4-0123456789ab-bfloat16")
    (tmp_path / "calibrations").mkdir()
    (tmp_path / "calibrations" / "abc-ahead1.safetensors").write_bytes(b"x" * 30)
    (tmp_path / "somebody's").mkdir()
    left_behind(tmp_path)
    os.utime(model / MANIFEST, (1, 1))
    os.utime(model / "weights", (1, 1))
    found = {entry.kind: entry for entry in entries(tmp_path)}
    assert {kind: entry.name for kind, entry in found.items()} == {
        "model": "my-model.Q4-0123456789ab-bfloat16",
        "calibration": "abc-ahead1.safetensors",
        "unfinished": ".converting-gone",
    }
    assert (found["model"].dtype, found["model"].used) == ("bfloat16", 1.0)
    assert found["model"].bytes == 100 + (model / MANIFEST).stat().st_size
    mark_used(model)
    assert time.time() - entries(tmp_path)[0].used < 60
    for entry in found.values():
        remove(entry)
        remove(entry)
    assert entries(tmp_path) == []
    assert (tmp_path / "somebody's").is_dir()


def test_a_folder_that_is_not_there_keeps_nothing(tmp_path):
    assert entries(tmp_path / "absent") == []


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(tmp_path), "iterdir", refused)
    with pytest.raises(CacheFolderError, match=f"cannot read {tmp_path}: .*Permission denied"):
        entries(tmp_path)


SLOW = """
import sys, time
from pathlib import Path
from scoutattention.models.formats import gguf
def save_file(tensors, path, metadata):
    path.write_bytes(b"half of it")
    print("writing", flush=True)
    time.sleep(100)
gguf.save_file = save_file
gguf.converted(Path(sys.argv[1]), "float32", Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_what_a_killed_conversion_left_is_removed(sent, tmp_path):
    file, cache = write(tmp_path / "tiny.gguf", families.make("llama")), tmp_path / "cache"
    command = [sys.executable, "-c", SLOW, str(file), str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        remove_abandoned(cache)
        (left,) = cache.iterdir()
        process.send_signal(sent)
    assert list(cache.iterdir()) == [left]
    remove_abandoned(cache)
    assert list(cache.iterdir()) == []
