"""What `scout plan --drift` does: it reads a recording, for which NumPy is loaded."""

from pathlib import Path
from statistics import fmean

from ...config import ScoutConfig
from ...planner.residency import read_recording, recorded_shares


def mean_share(file: Path, scout: ScoutConfig) -> float:
    """The CPU share of a recording, without a limit, over its steps and layers.   Raises ModelFileError."""
    recorded = read_recording(file)
    return fmean(fmean(step) for step in recorded_shares(recorded, scout, recorded.resident.shape[0]))
