"""A file that stays mapped while a model is in use."""

import mmap
import os
import warnings
from pathlib import Path

import torch

from ..config.fields import format_bytes
from ..errors import ModelFileError
from ..hardware.memory_error import named_memory


class StoredFile:
    """A file's bytes, of which memory has what was read.   data: the same as a tensor, uint8 [size], to be read only.

    The system ends a process that reads mapped bytes that the file no longer has. `check` notices a change between two
    uses; one in the middle of a use it cannot.
    """

    def __init__(self, path: Path) -> None:
        """Raises ModelFileError where it cannot be read, and CapacityError where there is no room to map it."""
        self.path = path
        try:
            self._file = path.open("rb")
            self.size = os.fstat(self._file.fileno()).st_size
            with named_memory(f"the {format_bytes(self.size)} of {path}"):
                self.bytes = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path} cannot be read: {error}") from error
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            self.data = (
                torch.frombuffer(self.bytes, dtype=torch.uint8) if self.size else torch.empty(0, dtype=torch.uint8)
            )
        self._state = self._now()

    def check(self) -> None:
        """Raises ModelFileError where the file has been changed since it was mapped."""
        if self._now() != self._state:
            raise ModelFileError(f"{self.path} was changed while its model was in use: load it again")

    def _now(self) -> tuple[int, int]:
        about = os.fstat(self._file.fileno())
        return about.st_size, about.st_mtime_ns
