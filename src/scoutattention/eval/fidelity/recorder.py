"""Recording what a model's queries choose, to be replayed by weights that are no model's."""

import torch
from torch import Tensor
from typing_extensions import override

from ...attention.choose import Choice
from ...attention.observer import Attended, Choose, Chosen, Observer
from ...config import PredictorName, ScoutConfig
from ...errors import ConfigError
from ...models.recording import About, Choices, Recording, Run
from .ablation import Variant

RECORDED: tuple[PredictorName, ...] = ("plain", "calibrated")


class Recorder(Observer):
    """An `Observer` of a single sequence: asks for what true queries and scouts chose, layer by layer."""

    def __init__(self) -> None:
        self._scouts: dict[int, Tensor] = {}
        self._resident: dict[int, Tensor] = {}  # by layer, at the first step
        self._scouted: set[int] = set()
        self._true: list[dict[int, Choices]] = []  # by step, by layer
        self._ahead: list[dict[int, Choices]] = []

    @override
    def chose(self, layer: int, scout: Tensor | None, chosen: Chosen) -> None:
        self._resident.setdefault(layer, chosen.resident[0].cpu())
        if scout is not None:
            self._scouts[layer] = scout

    @override
    def attended(self, layer: int, q: Tensor, choose: Choose, attended: Attended) -> None:
        if layer == 0:
            self._true.append({})
            self._ahead.append({})
        self._true[-1][layer] = self._ahead[-1][layer] = _narrow(choose(q))
        scout = self._scouts.pop(layer, None)
        if scout is not None:
            self._scouted.add(layer)
            self._ahead[-1][layer] = _narrow(choose(scout))

    def result(self, closed: int) -> Run:
        """Everything that was seen.   closed: blocks of the prompt.

        Raises ConfigError where nothing was, because every block had a slot.
        """
        if not self._resident:
            raise ConfigError("every block fits the device, so no scout chose anything to record: lower device_memory")
        layers = sorted(self._true[0])
        none = torch.zeros_like(next(iter(self._resident.values())))
        resident = torch.stack([self._resident.get(layer, none) for layer in layers])
        scouted = torch.tensor([layer in self._scouted for layer in layers])
        return Run(_stacked(self._true), _stacked(self._ahead), scouted, resident[..., :closed])


def recorded_variants(variant: Variant, context: int) -> list[Variant]:
    """What is run to be recorded: a configuration with each predictor, named after it.

    Raises ConfigError where the context is not of whole blocks, or within the budget, or nothing is predicted.
    """
    scout = variant.scout
    if context % scout.block_size:
        raise ConfigError(
            f"--record needs a context of whole blocks, and {context} tokens are not a multiple of "
            f"block_size={scout.block_size}: change --context"
        )
    if scout.budget is None or context <= scout.budget:
        raise ConfigError(
            f"a context of {context} tokens is within budget={scout.budget}, so there is no choice to record: "
            "raise --context, or lower --budget"
        )
    if variant.device_memory == "all":
        raise ConfigError(
            "device_memory='all' leaves no block absent, so nothing is predicted: choose 'slots' or a size"
        )
    if scout.lookahead == 0:
        raise ConfigError("lookahead=0 makes no scouts to record: raise --lookahead")
    return [Variant(name, scout.changed(predictor=name), variant.device_memory) for name in RECORDED]


def recording(scout: ScoutConfig, recorders: dict[str, Recorder], source: tuple[str, str], context: int) -> Recording:
    """What recorders, by predictor, have seen.   source: the names of the model and the text."""
    assert scout.budget is not None
    about = About(
        *source,
        context=context,
        budget=scout.budget,
        block_size=scout.block_size,
        recent_blocks=scout.recent_blocks,
        lookahead=scout.lookahead,
        digest=scout.ablation.digest,
    )
    closed = context // scout.block_size
    return Recording(about, {name: recorder.result(closed) for name, recorder in recorders.items()})


def _narrow(choice: Choice) -> Choices:
    return Choices(choice.blocks[0].short().cpu(), choice.wishes[0].half().cpu())


def _stacked(steps: list[dict[int, Choices]]) -> Choices:
    of_steps = [
        [torch.stack(part) for part in zip(*(step[layer] for layer in sorted(step)), strict=True)] for step in steps
    ]
    blocks, wishes = (torch.stack(part) for part in zip(*of_steps, strict=True))
    return Choices(blocks, wishes)
