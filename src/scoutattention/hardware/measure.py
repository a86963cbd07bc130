"""What `scout doctor --measure` found out about this computer, kept for `scout plan`."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CacheFolderError, ConfigError

FILE = "hardware.json"
"""In the folder of the cache."""


class PerSequence(NamedTuple):
    """Seconds of a step or of a layer: with one sequence, and for each further one."""

    first: float
    more: float

    def of(self, batch: int) -> float:
        """With so many sequences."""
        return self.first + (batch - 1) * self.more


class Pace(NamedTuple):
    """How fast a CPU decodes where reading memory does not hold it up.

    flops: operations per second of a core, in products of 16 rows with weights in blocks of 4 bits.
    step: seconds of a step, beside its layers.   The others are seconds of a layer, without those of reading its bytes.
    full: with full attention.   choice: what choosing blocks adds.   slots: what slots add to full attention.
    scout: what a predicted query adds to slots.
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
    entries = asdict(measured) | {"pace": measured.pace._asdict()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(entries) + "\n")
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
        _check([kept.cores, kept.reads])
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError) as error:
        why = "entries are missing or of another kind" if isinstance(error, KeyError | TypeError) else error
        raise ConfigError(f"{file} is no measurement: {why}: run `scout doctor --measure` again") from error
    return kept


def _pace(entries: Mapping[str, Any]) -> Pace:
    flops, *seconds = (entries[name] for name in Pace._fields)
    pace = Pace(flops, *(PerSequence(*each) for each in seconds))
    _check([pace.flops, pace.full.first])
    _check([number for each in pace[1:] for number in each], least=0)
    return pace


def _check(numbers: Sequence[float], least: float = sys.float_info.min) -> None:
    """Raises TypeError or ValueError where a number is none, not finite, or below the least that it may be."""
    wrong = [number for number in numbers if not (math.isfinite(number) and number >= least)]
    if wrong:
        raise ValueError(f"a figure is {wrong[0]}")
