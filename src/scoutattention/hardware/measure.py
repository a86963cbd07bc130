"""What `scout doctor --measure` found out about this computer, kept for `scout plan`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import CacheFolderError, ConfigError

FILE = "hardware.json"
"""In the folder of the cache."""


class PerLayer(NamedTuple):
    """Seconds of a layer: with one sequence, and for each further one."""

    first: float
    more: float

    def of(self, batch: int) -> float:
        """With so many sequences."""
        return self.first + (batch - 1) * self.more


class Pace(NamedTuple):
    """How fast a CPU decodes where reading memory does not hold it up.

    flops: operations per second of a core, in products of 16 rows with weights in blocks of 4 bits.
    The others are of a layer whose bytes take no time.   full: with full attention.
    choice: what choosing blocks adds.   call: what slots add to full attention.
    scout: what a predicted query adds to slots.
    """

    flops: float
    full: PerLayer
    choice: PerLayer
    call: PerLayer
    scout: PerLayer


@dataclass(frozen=True)
class Measured:
    """cpu: its name.   cores: threads that read.   reads: bytes per second that they read.   date: as 2026-11-26."""

    cpu: str
    cores: int
    reads: float
    pace: Pace
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
        entries = json.loads(file.read_text())
        kept = Measured(**entries | {"pace": _pace(*entries["pace"])})
        if not (isinstance(kept.reads, int | float) and kept.reads > 0 and kept.cores > 0):
            raise ValueError(f"it says that {kept.cores} cores read {kept.reads} bytes per second")
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{file} is no measurement: {error}: run `scout doctor --measure` again") from error
    return kept


def _pace(flops: float, *layers: list[float]) -> Pace:
    """Of a file's numbers.   Raises TypeError and ValueError where they are none that a computer has."""
    pace = Pace(flops, *(PerLayer(*each) for each in layers))
    if not (flops > 0 and pace.full.first > 0 and all(number >= 0 for each in layers for number in each)):
        raise ValueError(f"it says that a core is as fast as {pace}")
    return pace
