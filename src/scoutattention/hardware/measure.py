"""What `scout doctor --measure` found out about this computer, kept for `scout plan`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import CacheFolderError, ConfigError

FILE = "hardware.json"
"""In the folder of the cache."""


@dataclass(frozen=True)
class Measured:
    """cpu: its name.   cores: threads that read.   reads: bytes per second that they read.   date: as 2026-11-26."""

    cpu: str
    cores: int
    reads: float
    date: str


def store(folder: Path, measured: Measured) -> Path:
    """Write a measurement to the cache folder; returns the file. Raises CacheFolderError if it cannot be written."""
    file = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(measured)) + "\n")
    except OSError as error:
        raise CacheFolderError(
            f"cannot keep the measurement in {folder}: {error}: make room there, or set XDG_CACHE_HOME"
        ) from error
    return file


def stored(folder: Path) -> Measured | None:
    """The measurement that is kept, or None. Raises ConfigError where the file is something else."""
    file = folder / FILE
    try:
        kept = Measured(**json.loads(file.read_text()))
        if not (isinstance(kept.reads, int | float) and kept.reads > 0 and kept.cores > 0):
            raise ValueError(f"it says that {kept.cores} cores read {kept.reads} bytes per second")
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"{file} is no measurement: {error}: run `scout doctor --measure` again") from error
    return kept
