"""Trying scouts on a prompt, whose true queries are known: which layers can be trusted, and what would help them."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...config import ScoutConfig
from ...runtime.layer_graphs import Run, at_once
from ...runtime.ranks import ALONE, Ranks
from ...types import Rope
from ..predict import Adjust, CalibratedPredictor, QueryModel, source_layers
from .correction import Correction, fit_from, start

TRIED = (2048, 4096)
"""Prompt positions on which scouts are tried and corrections fitted: one in four, but not fewer or more.

With SmolLM2 (576 channels), 1,152 positions give corrections as good as 2,048. 576 give nearly as good ones, and 288 do
not. More positions take a GPU longer, and more memory. On a CPU, one in four costs a twentieth of the prefill.
"""
HELD_OUT = 8
"""One of so many tried positions judges, and is not fitted to."""
LEAST_FITTED = 512
"""Tried positions below which nothing is fitted: they would say too little, and the plain predictor is tried alone."""


class TrialSample(NamedTuple):
    """A layer's input x [n, E], true queries q [n, H, G, D] and rotary tables at some positions of a prompt."""

    x: Tensor
    q: Tensor
    rope: Rope

    def held_out(self) -> "TrialSample":
        """The positions that judge."""
        cos, sin = self.rope
        return TrialSample(self.x[::HELD_OUT], self.q[::HELD_OUT], Rope(cos[::HELD_OUT], sin[::HELD_OUT]))


class ScoutTrial:
    """Predicts a prompt's queries layer by layer and compares them with the true ones.

    A prompt's layers come in order; those of other prompts may come between.

    Only the first layers of the models we know cannot be predicted without a correction, but which and how many depends
    on the model and on how far ahead one looks, so it is measured and not listed.
    """

    def __init__(
        self,
        config: ScoutConfig,
        num_layers: int,
        model: QueryModel,
        calibrated: CalibratedPredictor | None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._sources = source_layers(config, num_layers)
        self._dims = config.ablation.correction_dims
        self._model = model
        self._calibrated = calibrated
        self._ranks = ranks
        self._inputs: dict[tuple[int, int], Tensor] = {}  # by row and layer

    def cosine(self, row: int, layer: int, sample: TrialSample, run: Run = at_once) -> Tensor:
        """Mean cosine of a layer's scouts and true queries, with the row's correction fitted first, if that helps.

        A number on the device; nothing waits for it, unless ranks share the model. 1 for a layer without scouts. NaN
        where the model's numbers are not finite.   run: what runs functions of each layer.
        """
        self._inputs[row, layer] = sample.x
        source = self._sources[layer]
        seen = self._inputs[row, source]
        still_needed = self._sources[layer + 1 :]
        self._inputs = {(of, at): x for (of, at), x in self._inputs.items() if of != row or at in still_needed}
        if source == layer:
            return torch.ones((), device=seen.device)
        return self._try(row, layer, sample, seen, run)

    def _try(self, row: int, layer: int, sample: TrialSample, seen: Tensor, run: Run) -> Tensor:
        """The cosine for a layer whose scouts are made from the inputs `seen` [n, E].

        The better of none and the model's stored correction is kept, then the sequence's own on top, if it helps more.
        """
        judge, shown, calibrated = sample.held_out(), seen[::HELD_OUT], self._calibrated
        queries = judge.q.float()

        def cosine(adjust: Adjust | None = None) -> Tensor:
            scouts = self._model.project_query(layer, shown, judge.rope, adjust)
            mine = cosine_similarity(scouts.float(), queries, dim=-1).mean()
            return self._ranks.sum(mine) / self._ranks.size

        best, base, own = cosine(), None, None
        if calibrated is None:
            return best
        uses_stored = torch.zeros_like(best, dtype=torch.bool)
        if calibrated.stored is not None:
            stored = calibrated.stored.of(layer)
            corrected = cosine(stored.apply)
            uses_stored = corrected > best
            best, base = corrected.where(uses_stored, best), stored.where(uses_stored)
        if seen.shape[0] >= LEAST_FITTED:
            own = self._fit(layer, (seen, sample.x), base, run)
            corrected = cosine((own if base is None else own.joined(base)).apply)
            sums = seen.sum(dtype=torch.float32) + sample.x.sum(dtype=torch.float32)
            helps = (corrected > best) & (sums.abs() < torch.inf)
            best, own = corrected.where(helps, best), own.where(helps)
        calibrated.set(layer, row, own, uses_stored)
        return best

    def _fit(self, layer: int, x: tuple[Tensor, Tensor], base: Correction | None, run: Run) -> Correction:
        """The sequence's own correction, on top of `base`, from inputs of the source layer and of the layer itself.

        Numbers that are not finite count as 0.
        """
        z, wanted = (self._model.normed_input(layer, _fitted(each)) for each in x)
        change = wanted - (z if base is None else base.apply(z))
        weight = self._model.query_weight(layer)
        return Correction(*run(fit_from, start(weight, self._dims), z, change, weight)).to(z.dtype)


def _fitted(x: Tensor) -> Tensor:
    """The inputs [n, E] at positions that do not judge; numbers that are not finite are 0.

    Positions after the last whole group of HELD_OUT are left out.
    """
    eights = x[: len(x) // HELD_OUT * HELD_OUT].view(-1, HELD_OUT, x.shape[1])
    return eights[:, 1:].nan_to_num(0, posinf=0, neginf=0).flatten(0, 1)


def sample_every(num_tokens: int) -> int:
    """One position of a prompt in so many is tried: one in four, but not fewer or more than TRIED, if possible."""
    least, most = TRIED
    wanted = min(max(least, num_tokens // 4), most)
    return -(-num_tokens // wanted)
