"""Trying scouts on a prompt, whose true queries are known: which layers can be trusted, and what would help them."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..config import ScoutConfig
from ..types import Rope
from .calibrate import fit_low_rank
from .predict import CalibratedPredictor, QueryModel, source_layers

TRIED = 2048
"""Prompt positions, at most, on which scouts are tried and corrections fitted."""
HELD_OUT = 8
"""One of so many tried positions judges, and is not fitted to."""
LEAST_FITTED = 512
"""Tried positions below which nothing is fitted: they would say too little, and the plain predictor is tried alone."""


class Trial(NamedTuple):
    """A layer's input x [n, E], true queries q [n, H, G, D] and rotary tables at some positions of a prompt."""

    x: Tensor
    q: Tensor
    rope: Rope

    def held_out(self) -> "Trial":
        """The positions that judge."""
        cos, sin = self.rope
        return Trial(self.x[::HELD_OUT], self.q[::HELD_OUT], Rope(cos[::HELD_OUT], sin[::HELD_OUT]))


class Rehearsal:
    """Predicts a prompt's queries layer by layer and compares them with the true ones. Layers come in order.

    Only the first layers of the models we know cannot be predicted without a correction, but which and how many depends
    on the model and on how far ahead one looks, so it is measured and not listed.
    """

    def __init__(
        self, config: ScoutConfig, num_layers: int, model: QueryModel, calibrated: CalibratedPredictor | None
    ) -> None:
        self._sources = source_layers(config, num_layers)
        self._rank = config.rank
        self._model = model
        self._calibrated = calibrated
        self._inputs: dict[int, Tensor] = {}

    def cosine(self, row: int, layer: int, trial: Trial) -> float:
        """Mean cosine of a layer's scouts and true queries, with the row's correction fitted first, if that helps.

        1 for a layer without scouts. NaN where the model's numbers are not finite.
        """
        self._inputs[layer] = trial.x
        source = self._sources[layer]
        seen = self._inputs[source]
        still_needed = self._sources[layer + 1 :]
        self._inputs = {before: x for before, x in self._inputs.items() if before in still_needed}
        return 1.0 if source == layer else self._try(row, layer, trial, seen)

    def _try(self, row: int, layer: int, trial: Trial, seen: Tensor) -> float:
        """The cosine for a layer whose scouts are made from the inputs `seen` [n, E]."""
        judge = trial.held_out()
        plain = _cosine(self._model.project_query(layer, seen[::HELD_OUT], judge.rope), judge.q)
        if self._calibrated is None:
            return plain
        self._calibrated.left[layer, row] = self._calibrated.right[layer, row] = 0
        if seen.shape[0] < LEAST_FITTED or not (seen.isfinite().all() and trial.x.isfinite().all()):
            return plain
        left, right = self._fit(layer, seen, trial.x)
        scouts = self._model.project_query(layer, seen[::HELD_OUT], judge.rope, lambda z: z + z @ left @ right.T)
        corrected = _cosine(scouts, judge.q)
        if not corrected > plain:  # nor where it is NaN
            return plain
        self._calibrated.left[layer, row], self._calibrated.right[layer, row] = left, right
        return corrected

    def _fit(self, layer: int, seen: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        fitted = torch.arange(seen.shape[0]) % HELD_OUT != 0
        z = self._model.normed_input(layer, seen[fitted])
        left, right = fit_low_rank(z, self._model.normed_input(layer, true[fitted]) - z, self._rank)
        return left.to(z.dtype), right.to(z.dtype)


def sample_positions(num_tokens: int) -> Tensor:
    """At most TRIED positions of a prompt, evenly spread, int64."""
    return torch.arange(0, num_tokens, -(-num_tokens // TRIED))


def _cosine(scouts: Tensor, q: Tensor) -> float:
    return float(cosine_similarity(scouts.float(), q.float(), dim=-1).mean())
