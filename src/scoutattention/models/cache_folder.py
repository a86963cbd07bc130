"""The user's cache folder: converted models and calibrations, and what an interrupted process left there.

A process that writes a model there holds a lock while it lives, so that the next one knows what was left behind.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import CacheFolderError

MANIFEST = "conversion.json"
CALIBRATIONS = "calibrations"

_WORKING, _LOCK = ".converting-", "lock"
_GRACE_S = 60
"""A working folder without a lock that is younger may be one that was made just now."""
_MODEL = re.compile(r"(?P<name>.+)-[0-9a-f]{12}-(?P<dtype>\w+)")


@dataclass(frozen=True)
class Entry:
    """Something that is kept.

    kind: model, calibration or unfinished.   dtype: of a model's weights.   used: seconds since 1970.
    """

    name: str
    kind: str
    path: Path
    bytes: int
    dtype: str | None
    used: float


def default_cache_dir() -> Path:
    """The user's folder for converted models: $XDG_CACHE_HOME/scoutattention, or ~/.cache/scoutattention."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scoutattention"


def entries(folder: Path) -> list[Entry]:
    """What is kept in a cache folder, the largest first; CacheFolderError where it cannot be read."""
    try:
        found = [entry for path in _children(folder) if path.is_dir() and (entry := _directory_entry(path))]
        for path in _children(folder / CALIBRATIONS):
            status = path.stat()
            found.append(
                Entry(path.name, "calibration", path, status.st_size, None, max(status.st_mtime, status.st_atime))
            )
    except OSError as error:
        raise CacheFolderError(f"cannot read {folder}: {error}") from error
    return sorted(found, key=lambda entry: (-entry.bytes, entry.name))


def remove(entry: Entry) -> None:
    """Delete an entry, which processes that have it open keep. CacheFolderError where that is not allowed."""
    try:
        shutil.rmtree(entry.path) if entry.path.is_dir() else entry.path.unlink()
    except FileNotFoundError:
        pass  # another process was first
    except OSError as error:
        raise CacheFolderError(f"cannot delete {entry.path}: {error}") from error


@contextmanager
def working_folder(folder: Path) -> Iterator[Path]:
    """A new folder inside a cache folder. It is gone in the end, and the next process removes it if this one is killed.

    What earlier processes left is removed first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_WORKING, ignore_cleanup_errors=True) as name:
        work = Path(name)
        with (work / ".lock").open("wb") as lock:
            with suppress(OSError):  # a file system without locks: `_is_abandoned` then takes no folder for abandoned
                fcntl.flock(lock, fcntl.LOCK_EX)
            (work / ".lock").rename(work / _LOCK)  # whoever sees it under this name finds it taken
            yield work


def remove_abandoned(folder: Path) -> None:
    """Remove the working folders of processes that are gone."""
    for path in _children(folder):
        if path.name.startswith(_WORKING) and _is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)


def publish(work: Path, target: Path, about: dict[str, str]) -> None:
    """Give a finished directory its name, with a list of its files; if another process was first, its copy is as good.

    about: what the list says besides.
    """
    files = {path.name: path.stat().st_size for path in work.iterdir()}
    (work / MANIFEST).write_text(json.dumps({**about, "files": files}, indent=2), encoding="utf-8")
    if target.exists() and not is_complete(target):
        shutil.rmtree(target)
    try:
        work.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def is_complete(directory: Path) -> bool:
    """Whether all files are there that were published, with as many bytes."""
    try:
        files = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all((directory / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def mark_used(directory: Path) -> None:
    """Remember that a model is used now, as well as the file system allows."""
    try:
        os.utime(directory / MANIFEST)
    except OSError:
        return  # a folder that is only read


def _directory_entry(path: Path) -> Entry | None:
    files = [file.stat() for file in path.rglob("*") if file.is_file()]
    size, used = sum(status.st_size for status in files), max((status.st_mtime for status in files), default=0.0)
    if path.name.startswith(_WORKING):
        return Entry(path.name, "unfinished", path, size, None, used) if _is_abandoned(path) else None
    match = _MODEL.fullmatch(path.name)
    return Entry(path.name, "model", path, size, match["dtype"], used) if match else None


def _is_abandoned(path: Path) -> bool:
    try:
        with (path / _LOCK).open("rb") as lock:
            return _can_lock(lock)
    except FileNotFoundError:
        return path.is_dir() and time.time() - path.stat().st_mtime > _GRACE_S
    except OSError:
        return False


def _can_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
