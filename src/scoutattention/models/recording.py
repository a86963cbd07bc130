"""What a model's queries chose while it read a real text, stored: so that other weights can be made to choose alike."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import ModelFileError

FORMAT = "2"
"""Version of the stored files; those of other versions are refused."""


class Choices(NamedTuple):
    """Chosen blocks, most important first, and the part of its attention that each KV head wished to give them.

    blocks: int16 [steps, L, H, N].   wishes: float16 [steps, L, H, N].
    """

    blocks: Tensor
    wishes: Tensor


class Run(NamedTuple):
    """The same steps with one predictor.

    true: what true queries chose.   scouts: what scouts chose; in layers without them, what true queries did.
    scouted: bool [L], layers that had scouts.   resident: bool [L, H, NB], blocks that had slots at the first step.
    """

    true: Choices
    scouts: Choices
    scouted: Tensor
    resident: Tensor


@dataclass(frozen=True)
class About:
    """What was recorded: a model on a text after `context` tokens, and the fields of `ScoutConfig` that shape it."""

    model: str
    text: str
    context: int
    budget: int
    block_size: int
    recent_blocks: int
    lookahead: int
    digest: str


@dataclass(frozen=True)
class Recording:
    """runs: by the predictor's name."""

    about: About
    runs: Mapping[str, Run]

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        tensors = {
            f"{predictor}.{name}": tensor.contiguous()
            for predictor, run in self.runs.items()
            for name, tensor in _flat(run).items()
        }
        about = {"about": json.dumps(asdict(self.about)), "runs": json.dumps(list(self.runs)), "format": FORMAT}
        return save(tensors, metadata=about)


def load_recording(path: Path) -> Recording:
    """Read a recording. Raises ModelFileError where the file is missing, malformed or something else."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if "runs" in about and about.get("format") != FORMAT:
            raise ValueError("an earlier version stored it")
        runs = {predictor: _run(tensors, predictor) for predictor in json.loads(about["runs"])}
        recording = Recording(About(**json.loads(about["about"])), runs)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{path} is not a recording: {error}: make one with `scout eval fidelity MODEL --record FILE`"
        ) from error
    return recording


def _flat(run: Run) -> dict[str, Tensor]:
    choices = {"true": run.true, "scouts": run.scouts}
    flat = {f"{who}.{name}": tensor for who, kind in choices.items() for name, tensor in kind._asdict().items()}
    return flat | {"scouted": run.scouted, "resident": run.resident}


def _run(tensors: Mapping[str, Tensor], predictor: str) -> Run:
    true, scouts = (
        Choices(tensors[f"{predictor}.{who}.blocks"], tensors[f"{predictor}.{who}.wishes"])
        for who in ("true", "scouts")
    )
    run = Run(true, scouts, tensors[f"{predictor}.scouted"], tensors[f"{predictor}.resident"])
    steps, layers, heads, count = true.blocks.shape
    sizes = [tuple(tensor.shape) for tensor in (*true, *scouts)]
    if set(sizes) != {(steps, layers, heads, count)} or run.scouted.shape != (layers,):
        raise ValueError(f"its tensors have shapes that contradict each other: {sizes}")
    if run.resident.shape[:2] != (layers, heads) or true.blocks.dtype != torch.int16 or not steps:
        raise ValueError(f"its blocks are {true.blocks.dtype} {list(true.blocks.shape)}")
    return run
