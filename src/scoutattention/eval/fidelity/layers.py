"""What each layer's scouts were worth."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from typing_extensions import override

from ...attention.observer import Attended, Choose, Chosen, Observer


@dataclass(frozen=True)
class Layers:
    """Measurements of each layer, over the steps and heads; None where nothing was predicted, or nothing was absent.

    cosine: of the scout and the true query, the mean.
    far_recall: of the absent blocks that the true query would choose, the part that the scout chose.
    share: of the chosen blocks, those that were absent.
    guarded: of the KV heads that had a scout, those in which the guard found something missed or spoilt.
    w, w_p95: the far partial's weight in the merge, its mean and its 95th percentile.
    """

    cosine: list[float | None]
    far_recall: list[float | None]
    share: list[float]
    guarded: list[float | None]
    w: list[float]
    w_p95: list[float]


class LayerWatch(Observer):
    """An `Observer` of a single sequence."""

    def __init__(self, num_layers: int) -> None:
        self._cosines: list[list[float]] = [[] for _ in range(num_layers)]
        self._weights: list[list[Tensor]] = [[] for _ in range(num_layers)]
        self._missing = [0] * num_layers  # absent blocks that the true query would choose
        self._found = [0] * num_layers
        self._chosen = [0] * num_layers
        self._far = [0] * num_layers
        self._scouts = [0] * num_layers  # KV heads that had one, over the steps
        self._guarded = [0] * num_layers
        self._scouted: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def far_recall(self) -> float | None:
        """`Layers.far_recall` over all layers."""
        return _ratio(sum(self._found), sum(self._missing))

    @property
    def guarded(self) -> float | None:
        """`Layers.guarded` over all layers."""
        return _ratio(sum(self._guarded), sum(self._scouts))

    @override
    def chose(self, layer: int, scout: Tensor | None, chosen: Chosen) -> None:
        resident = chosen.resident
        mask = _mask(chosen.blocks, chosen.valid, resident)
        self._chosen[layer] += int(mask.sum())
        self._far[layer] += int((mask & ~resident).sum())
        if scout is not None:
            self._scouted[layer] = scout, mask, resident

    @override
    def attended(self, layer: int, q: Tensor, choose: Choose, attended: Attended) -> None:
        self._weights[layer].append(attended.weight.flatten())
        if layer in self._scouted:
            scout, chosen, resident = self._scouted.pop(layer)
            choice = choose(q)
            missing = _mask(choice.blocks, choice.valid, resident) & ~resident
            self._cosines[layer].append(float(cosine_similarity(scout.float(), q.float(), dim=-1).mean()))
            self._missing[layer] += int(missing.sum())
            self._found[layer] += int((missing & chosen).sum())
            self._scouts[layer] += q.shape[1]
            self._guarded[layer] += 0 if attended.guarded is None else int(attended.guarded.sum())

    def result(self) -> Layers:
        """Everything that was seen."""
        weights = [torch.cat(seen) if seen else torch.zeros(1) for seen in self._weights]
        return Layers(
            cosine=[_ratio(sum(cosines), len(cosines)) for cosines in self._cosines],
            far_recall=[_ratio(*counts) for counts in zip(self._found, self._missing, strict=True)],
            share=[_ratio(*counts) or 0.0 for counts in zip(self._far, self._chosen, strict=True)],
            guarded=[_ratio(*counts) for counts in zip(self._guarded, self._scouts, strict=True)],
            w=[float(seen.mean()) for seen in weights],
            w_p95=[float(seen.quantile(0.95)) for seen in weights],
        )


def _mask(blocks: Tensor, valid: Tensor, like: Tensor) -> Tensor:
    """The valid ones of blocks [B, H, N] as bool [B, H, NB]."""
    return torch.zeros_like(like).scatter_(-1, blocks, valid)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
