"""Prompts that were read, in a directory: a restart finds them, and need not read them again.

A prompt is a folder of safetensors: a file for each layer, one for what reading it decided, and an index with the names
of its blocks and the checksums of the other files. The folder's name has the checksum of the index. The folder is
written under another name, brought to the disk, and then renamed; so it is whole, or it is not there.
"""

import fcntl
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ...cache.prefix import HASH_BYTES, common
from ...config.fields import format_bytes
from ...errors import CacheFolderError

logger = logging.getLogger(__name__)

INDEX, STATE, LAYER = "index.safetensors", "state.safetensors", "layer-{:04d}.safetensors"
_WRITING, _REMOVING, _LOCK = ".writing-", ".removing-", "lock"
_FOLDER = re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})-([0-9a-f]{32})")
"""What decides a block's content beside its name; the name of the last block; the checksum of the index."""


@dataclass(frozen=True)
class Stored:
    """A prompt in the directory.   names: of its blocks.   files: checksums of the other files."""

    folder: Path
    names: frozenset[bytes]
    files: dict[str, str]


class PrefixFiles:
    """The prompts in a directory that this engine can use, and the size of all that are there.

    One process at a time has the directory. What cannot be read is told of in the log, and deleted.
    """

    def __init__(self, directory: Path, limit: int, key: str, content: Sequence[Tensor]) -> None:
        """Raises CacheFolderError where the directory cannot be used.

        limit: bytes of the directory at most; prompts that were not used for longest go first.
        key: what decides the content of a block beside its name.   content: of all pages, [L, S, ...] each.
        """
        self._directory = directory
        self._limit = limit
        self._key = checksum(key.encode())
        self._content = content
        self._stored: dict[str, Stored] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = (directory / _LOCK).open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in sorted(directory.iterdir()):
                self._look_at(path)
        except BlockingIOError:
            raise CacheFolderError(f"another process has prefix_cache_dir={str(directory)!r}: give another") from None
        except OSError as error:
            reason = (
                "it is not a directory" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
            )
            raise CacheFolderError(f"cannot use prefix_cache_dir={str(directory)!r}: {reason}") from error

    def close(self) -> None:
        """Let other processes have the directory."""
        self._lock.close()

    def find(self, names: Sequence[bytes], least: int, first: int) -> tuple[Stored | None, int]:
        """The prompt that has most of a chain's blocks, and how many; see `PrefixIndex.find`."""
        best, most = None, max(0, least - 1)
        for stored in self._stored.values():
            length = common(names, stored.names)
            if length > most and len(stored.names) >= first:
                best, most = stored, length
        return best, 0 if best is None else most

    def keep(self, names: Sequence[bytes], pages: Sequence[int], state: Sequence[Tensor]) -> None:
        """Store a prompt whose blocks have these names and pages. Errors are logged."""
        if any(names[-1] in stored.names for stored in self._stored.values()):
            return
        size = len(pages) * sum(len(part) * part[0, 0].nbytes for part in self._content)
        size += sum(part.nbytes for part in state)
        if size > self._limit:
            logger.warning(
                "a prompt of %d blocks is not stored: it takes %s, and prefix_cache_size is %s",
                *(len(names), format_bytes(size), format_bytes(self._limit)),
            )
            return
        try:
            self._make_room(self._limit - size)
            self._write(names, pages, state)
        except OSError as error:
            logger.warning("a prompt is not stored in prefix_cache_dir=%r: %s", str(self._directory), error)

    def read(self, stored: Stored, count: int, pages: Sequence[int]) -> list[Tensor] | None:
        """Fill pages with a prompt's first `count` blocks; returns its state, or None where a file is damaged."""
        there = torch.tensor(pages)
        try:
            for layer in range(len(self._content[0])):
                tensors = _tensors(stored.folder / LAYER.format(layer), stored.files[LAYER.format(layer)])
                for place, part in enumerate(self._content):
                    part[layer, there.to(part.device)] = tensors[str(place)][:count].to(part.device)
            state = _tensors(stored.folder / STATE, stored.files[STATE])
            os.utime(stored.folder)
        except (OSError, ValueError) as error:
            self._remove_damaged(stored.folder, error)
            return None
        return [state[str(place)] for place in range(len(state))]

    def _look_at(self, path: Path) -> None:
        """Take note of a prompt; remove what an earlier process has left half done."""
        if path.name.startswith((_WRITING, _REMOVING)):
            shutil.rmtree(path, ignore_errors=True)
        elif (match := _FOLDER.fullmatch(path.name)) and match[1] == self._key:
            try:
                data = (path / INDEX).read_bytes()
                if checksum(data) != match[3]:
                    raise ValueError(f"{path / INDEX} is not what was written")
                index = load(data)
                files = json.loads(bytes(index["files"].tolist()))
                names = frozenset(bytes(name) for name in index["names"].tolist())
            except (OSError, ValueError) as error:
                self._remove_damaged(path, error)
            else:
                self._stored[path.name] = Stored(path, names, files)

    def _write(self, names: Sequence[bytes], pages: Sequence[int], state: Sequence[Tensor]) -> None:
        there, files = torch.tensor(pages), {}
        work = Path(tempfile.mkdtemp(prefix=_WRITING, dir=self._directory))
        try:
            for layer in range(len(self._content[0])):
                parts = {
                    str(place): part[layer, there.to(part.device)].to("cpu") for place, part in enumerate(self._content)
                }
                files[LAYER.format(layer)] = _store(work / LAYER.format(layer), parts)
            files[STATE] = _store(work / STATE, {str(place): part.contiguous() for place, part in enumerate(state)})
            index = {
                "names": torch.tensor([list(name) for name in names], dtype=torch.uint8).view(-1, HASH_BYTES),
                "files": torch.tensor(list(json.dumps(files).encode()), dtype=torch.uint8),
            }
            folder = self._directory / f"{self._key}-{names[-1].hex()[:32]}-{_store(work / INDEX, index)}"
            _sync_folder(work)
            work.rename(folder)
            _sync_folder(self._directory)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        self._stored[folder.name] = Stored(folder, frozenset(names), files)

    def _make_room(self, size: int) -> None:
        """Remove prompts, of other models too, until all together take at most so many bytes."""
        folders = [path for path in self._directory.iterdir() if _FOLDER.fullmatch(path.name)]
        sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in folders}
        for path in sorted(folders, key=lambda path: path.stat().st_mtime):
            if sum(sizes.values()) <= size:
                return
            self._remove(path)
            del sizes[path]

    def _remove_damaged(self, folder: Path, error: Exception) -> None:
        logger.warning("the prompt in %s cannot be used, and is deleted: %s", folder, error)
        self._remove(folder)

    def _remove(self, folder: Path) -> None:
        """Rename the file, then delete it: so a half-deleted file is never read."""
        self._stored.pop(folder.name, None)
        gone = folder.with_name(_REMOVING + folder.name)
        with suppress(OSError):  # of a folder that is only read, for one
            folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def checksum(data: bytes) -> str:
    """Of a file."""
    return blake2b(data, digest_size=16).hexdigest()


def _store(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write a file and bring it to the disk; returns its checksum."""
    data = save(tensors)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return checksum(data)


def _tensors(path: Path, expected: str) -> dict[str, Tensor]:
    """The tensors of a file. Raises ValueError if the file is damaged, OSError if it cannot be read."""
    data = path.read_bytes()
    if checksum(data) != expected:
        raise ValueError(f"{path} is not what was written")
    try:
        return load(data)
    except SafetensorError as error:
        raise ValueError(f"{path} is malformed: {error}") from error


def _sync_folder(directory: Path) -> None:
    """Flush the list of a directory's files to the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
