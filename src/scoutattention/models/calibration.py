"""Stored calibrations: a model's corrections for one lookahead, in one safetensors file of the user's cache folder."""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..attention.prompt.correction import Correction
from ..errors import CacheFolderError, CalibrationError
from .decoder import Decoder

FORMAT = "2"
"""Version of the stored files; those of other versions are refused."""
OFF = "run `scout calibrate` again, or pass calibration=None (--calibration off)"


class Calibration(NamedTuple):
    """corrections: bfloat16 [L, E, dims].   name: what reports call it: the file, and the beginning of its hash."""

    corrections: Correction
    name: str


def default_cache_dir() -> Path:
    """The user's folder: $XDG_CACHE_HOME/scoutattention, or ~/.cache/scoutattention."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scoutattention"


def default_path(decoder: Decoder, lookahead: int) -> Path:
    """Where a model's calibration for a lookahead is stored, and looked for."""
    return default_cache_dir() / "calibrations" / f"{decoder.fingerprint}-ahead{lookahead}.safetensors"


def store(path: Path, decoder: Decoder, lookahead: int, corrections: Correction) -> None:
    """Write a model's corrections [L, E, dims]; whoever reads meanwhile finds the old file or the new one.

    Raises CacheFolderError where it cannot be written.
    """
    narrow = corrections.to(torch.bfloat16)
    tensors = {"left": narrow.left.contiguous(), "right": narrow.right.contiguous()}
    data = save(tensors, metadata={"format": FORMAT, "model": decoder.fingerprint, "lookahead": str(lookahead)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".calibrating-") as folder:
            file = Path(folder) / path.name
            file.write_bytes(data)
            file.replace(path)
    except OSError as error:
        raise CacheFolderError(
            f"cannot keep the calibration in {path.parent}: {error}: make room there, or set XDG_CACHE_HOME"
        ) from error


def find(decoder: Decoder, lookahead: int, wanted: str | None) -> Calibration | None:
    """The calibration that a configuration asks for.

    wanted: "auto" takes the stored one if there is one; a path must exist; None is none.
    Raises CalibrationError where the file cannot be read, or is of another model, lookahead or shape.
    """
    if wanted is None:
        return None
    path = default_path(decoder, lookahead) if wanted == "auto" else Path(wanted).expanduser()
    if wanted == "auto" and not path.exists():
        return None
    corrections = _read(path, decoder, lookahead)
    return Calibration(corrections, f"{path.name} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}")


def _read(path: Path, decoder: Decoder, lookahead: int) -> Correction:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise CalibrationError(f"the calibration {path} is not a file: {OFF}")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            corrections = Correction(file.get_tensor("left"), file.get_tensor("right"))
    except (SafetensorError, OSError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error
        raise CalibrationError(f"cannot read the calibration {path}: {reason}: {OFF}") from error
    if about.get("format") != FORMAT:
        raise CalibrationError(f"the calibration {path} was stored by an earlier version: {OFF}")
    for what, found, expected in (
        ("model", about.get("model"), decoder.fingerprint),
        ("lookahead", about.get("lookahead"), str(lookahead)),
    ):
        if found != expected:
            raise CalibrationError(f"the calibration {path} is for {what} {found}, and this is {expected}: {OFF}")
    left, right = (list(tensor.shape) for tensor in corrections)
    sizes = [decoder.shape.num_layers, decoder.shape.hidden_size]
    if left != right or left[:-1] != sizes or not all(tensor.isfinite().all() for tensor in corrections):
        raise CalibrationError(
            f"the calibration {path} holds {left} and {right} where the model needs finite {[*sizes, 'dims']}: {OFF}"
        )
    return corrections
