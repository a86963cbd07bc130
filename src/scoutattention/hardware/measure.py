"""What `scout doctor --measure` found out about this computer, kept for `scout plan`."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import CacheFolderError, ConfigError

FILE = "hardware.json"
"""In the folder of the cache."""


@dataclass(frozen=True)
class PerSequence:
    """Seconds of a step or of a layer: with one sequence, and for each further one."""

    first: float
    more: float

    def of(self, batch: int) -> float:
        """With so many sequences."""
        return self.first + (batch - 1) * self.more


@dataclass(frozen=True)
class Pace:
    """How fast a CPU decodes where memory does not limit it.

    flops: operations per second of a core, in products of 16 rows with weights in blocks of 4 bits.
    step: seconds of a step outside its layers.
    full, choice, slots, scout: seconds of a layer. Reading memory is not counted. A layer with full attention takes
    `full`. Choosing blocks adds `choice`. Slots add `slots` to `full`. A predicted query adds `scout` to that.
    """

    flops: float
    step: PerSequence
    full: PerSequence
    choice: PerSequence
    slots: PerSequence
    scout: PerSequence


@dataclass(frozen=True)
class Measured:
    """cpu: its name.   cores: threads that read.   reads: bytes per second that they read.   date: as 2026-11-26.

    pace: how fast its cores work.
    """

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
        kept = Measured(**entries | {"pace": _pace(entries["pace"])})
        if not (0 < kept.reads < math.inf and kept.cores > 0):
            raise ValueError(f"it says that {kept.cores} cores read {kept.reads} bytes per second")
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError) as error:
        why = "entries are missing or of another kind" if isinstance(error, KeyError | TypeError) else error
        raise ConfigError(f"{file} is no measurement: {why}: run `scout doctor --measure` again") from error
    return kept


def _pace(entries: Mapping[str, Any]) -> Pace:
    """Raises KeyError and TypeError where entries are missing or no numbers, ValueError where no computer has them."""
    names = [field.name for field in fields(Pace) if field.name != "flops"]
    pace = Pace(entries["flops"], *(PerSequence(**entries[name]) for name in names))
    figures = [("flops", pace.flops)]
    figures += [(name, figure) for name in names for figure in asdict(getattr(pace, name)).values()]
    for name, figure in figures:
        if not 0 <= figure < math.inf or pace.flops == 0:
            raise ValueError(
                f"it says that {name} is {figure}: figures are finite, none is below 0, and flops is not 0"
            )
    return pace
