"""CPU shares from a recording of a real model: which chosen blocks have slots, step by step, and what recall does.

A recording has what scouts and true queries chose (`scout eval fidelity --record`). The policy is that of
`kernels/reference_recall.py`, for one sequence: interest is a running mean of wishes, a layer's turn comes sooner with
a larger CPU share, and a block takes the slot of the least interest if it has clearly more.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ..config import ScoutConfig
from ..errors import ModelFileError

KEPT, MARGIN, PART = 0.85, 1.3, 4
"""Of the engine's policy: what a step leaves of interest; how much more a swap takes; a recall's part of a budget."""
FORMAT = "2"

Floats = NDArray[np.float32]
Blocks = NDArray[np.int64]


class Recorded(NamedTuple):
    """Steps of a model with 30 layers, say, after a prompt.

    blocks, wishes: [steps, L, H, N], chosen.   resident: bool [L, H, NB].   context, budget: tokens.
    """

    blocks: Blocks
    wishes: Floats
    resident: NDArray[np.bool_]
    context: int
    budget: int


def read_recording(path: Path, predictor: str = "calibrated") -> Recorded:
    """What scouts chose in a recording. Raises ModelFileError where the file is missing, or something else."""
    try:
        with safe_open(path, framework="np") as file:
            about: Mapping[str, Any] = file.metadata() or {}
            if about.get("format") != FORMAT or predictor not in json.loads(about.get("runs", "[]")):
                raise ValueError(f"it has no run of the predictor {predictor}")
            blocks = file.get_tensor(f"{predictor}.scouts.blocks").astype(np.int64)
            wishes = file.get_tensor(f"{predictor}.scouts.wishes").astype(np.float32)
            resident = file.get_tensor(f"{predictor}.resident")
            setup = json.loads(about["about"])
            context, budget = int(setup["context"]), int(setup["budget"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"{path} is not a recording: {error}: make one with `scout eval fidelity MODEL --record FILE`"
        ) from error
    return Recorded(blocks, wishes, resident, context, budget)


class Slots:
    """Which blocks of each layer and KV head are resident, [L, H, NB], and what is known of their interest."""

    def __init__(self, recorded: Recorded, scout: ScoutConfig, part: float) -> None:
        """`part`: slots, as a multiple of those that were recorded."""
        layers, heads, self._closed = recorded.resident.shape
        blocks = max(self._closed, int(recorded.blocks.max()) + 1)
        self.resident = np.zeros((layers, heads, blocks), bool)
        self.resident[..., : self._closed] = recorded.resident
        self.interest = np.zeros(self.resident.shape, np.float32)
        self._always = np.zeros(blocks, bool)
        self._always[: scout.sink_blocks] = True
        self._scout = scout
        self._progress = np.arange(layers) / layers  # layers take turns
        self._most = max(1, (scout.budget_blocks or blocks) // PART)
        self._note(recorded.blocks[0], recorded.wishes[0])
        self._size = max(1, min(blocks, round(part * int(recorded.resident[0, 0].sum()))))
        order = np.argsort(-self.interest - self.resident - 2 * self._always, axis=-1, kind="stable")
        np.put_along_axis(self.resident, order[..., self._size :], values=False, axis=-1)
        np.put_along_axis(self.resident, order[..., : self._size], values=True, axis=-1)

    def step(self, chosen: Blocks, wishes: Floats) -> Floats:
        """The share of each layer's chosen blocks that is absent; then interest is noted, and recall gives slots."""
        while self._closed <= chosen.max():
            self._give_to_new(self._closed)
            self._closed += 1
        shares: Floats = (~np.take_along_axis(self.resident, chosen, -1)).mean((1, 2), dtype=np.float32)
        self._note(chosen, wishes)
        ablation = self._scout.ablation
        if ablation.recall_interval:
            target = ablation.recall_target
            self._progress += (shares / target if target else 1.0) / ablation.recall_interval
            due = self._progress >= 1
            self._progress[due] = 0
            for layer in np.flatnonzero(due).tolist():
                self._recall(layer)
        return shares

    def _note(self, chosen: Blocks, wishes: Floats) -> None:
        self.interest *= KEPT
        noted = np.take_along_axis(self.interest, chosen, -1) + (1 - KEPT) * wishes
        np.put_along_axis(self.interest, chosen, noted, -1)

    def _give_to_new(self, block: int) -> None:
        """A block that has just closed takes the slot of least interest."""
        least = np.where(self.resident & ~self._always, self.interest, np.inf).argmin(-1)[..., None]
        np.put_along_axis(self.resident, least, values=False, axis=-1)
        self.resident[..., block] = True

    def _recall(self, layer: int) -> None:
        interest, resident = self.interest[layer], self.resident[layer]
        count = min(self._most, self._size, resident.shape[-1] - self._size)
        if count <= 0:
            return
        wanted = np.argsort(np.where(resident, -np.inf, interest), axis=-1)[:, ::-1][:, :count]
        least = np.argsort(np.where(resident & ~self._always, interest, np.inf), axis=-1)[:, :count]
        comes, goes = np.take_along_axis(interest, wanted, -1), np.take_along_axis(interest, least, -1)
        swap = comes > MARGIN * goes
        heads, places = np.nonzero(swap)
        resident[heads, least[heads, places]] = False
        resident[heads, wanted[heads, places]] = True


def recorded_shares(recorded: Recorded, scout: ScoutConfig, layers: int, slots: float = 1.0) -> Iterator[list[float]]:
    """The CPU share of each of `layers` layers in each step, those of the recording stretched over them.

    slots: how many there are, as a multiple of those of the recording, which are twice its budget.
    """
    held = Slots(recorded, scout, slots)
    source = np.arange(layers) * recorded.blocks.shape[1] // layers
    for blocks, wishes in zip(recorded.blocks, recorded.wishes, strict=True):
        yield held.step(blocks, wishes)[source].tolist()


def mean_share(recorded: Recorded, scout: ScoutConfig) -> float:
    """The mean of `recorded_shares` over the layers and steps of a recording."""
    shares = recorded_shares(recorded, scout, recorded.resident.shape[0])
    return float(np.mean(list(shares)))
