"""Trying scouts on a prompt, whose true queries are known: which layers can be trusted, and what would help them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...config import ScoutConfig
from ...kernels.ops import Ops
from ...runtime.ranks import ALONE, Ranks
from ...types import Rope
from ..predict import CalibratedPredictor, QueryModel, source_layers
from .correction import Correction, Problem, fit_each

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
        ops: Ops,
        ranks: Ranks = ALONE,
    ) -> None:
        self._sources = source_layers(config, num_layers)
        self._dims = config.ablation.correction_dims
        self._model = model
        self._calibrated = calibrated
        self._ops = ops
        self._ranks = ranks
        self._inputs: dict[tuple[int, int], _Inputs] = {}  # by row and layer

    def cosines(self, row: int, first: int, samples: Sequence[TrialSample]) -> Tensor:
        """Mean cosine of each layer's scouts and true queries, with the row's corrections fitted first, if they help.

        first: the first of the layers, which follow one another.   Returns float32 [N], on the device; nothing waits
        for it, unless ranks share the model. A layer without scouts has 1, and one of numbers that are not finite NaN.
        """
        layers = range(first, first + len(samples))
        for layer, sample in zip(layers, samples, strict=True):
            self._inputs[row, layer] = _Inputs(sample.x, sample.x.sum(dtype=torch.float32))
        tried = [
            _Tried(layer, self._inputs[row, self._sources[layer]], self._inputs[row, layer], sample)
            for layer, sample in zip(layers, samples, strict=True)
            if self._sources[layer] != layer
        ]
        still_needed = self._sources[layers.stop :]
        self._inputs = {(of, at): x for (of, at), x in self._inputs.items() if of != row or at in still_needed}
        cosines = torch.ones(len(layers), device=samples[0].x.device)
        if not tried:
            return cosines
        found = self._try(row, tried)
        if len(tried) == len(layers):
            return found
        for one, cosine in zip(tried, found, strict=True):
            cosines[one.layer - first] = cosine
        return cosines

    def _try(self, row: int, tried: Sequence["_Tried"]) -> Tensor:
        """The cosines [N] for layers that have scouts.

        The better of none and the model's stored correction is kept, then the sequence's own on top, if it helps more.
        """
        judges, calibrated = [one.sample.held_out() for one in tried], self._calibrated
        queries = normalize(torch.stack([judge.q for judge in judges]).float(), dim=-1)

        def cosines(correction: Correction | None = None) -> Tensor:
            adjusts = [None if correction is None else correction.of(i).apply for i in range(len(tried))]
            scouts = [
                self._model.project_query(one.layer, one.seen.x[::HELD_OUT], judge.rope, adjust)
                for one, judge, adjust in zip(tried, judges, adjusts, strict=True)
            ]
            mine = (normalize(torch.stack(scouts).float(), dim=-1) * queries).sum(-1)
            return self._ranks.sum(mine.flatten(1).mean(1)) / self._ranks.size

        best, base, own = cosines(), None, None
        if calibrated is None:
            return best
        uses_stored = torch.zeros_like(best, dtype=torch.bool)
        if calibrated.stored is not None:
            stored = Correction(*(torch.stack([of[one.layer] for one in tried]) for of in calibrated.stored))
            corrected = cosines(stored)
            uses_stored = corrected > best
            best, base = corrected.where(uses_stored, best), stored.where(uses_stored)
        if len(tried[0].seen.x) >= LEAST_FITTED:
            own = self._fit(tried, base)
            corrected = cosines(own if base is None else own.joined(base))
            sums = torch.stack([one.seen.sum for one in tried]) + torch.stack([one.own.sum for one in tried])
            helps = (corrected > best) & sums.isfinite()
            best, own = corrected.where(helps, best), own.where(helps)
        for i, one in enumerate(tried):
            calibrated.set(one.layer, row, None if own is None else own.of(i), uses_stored[i])
        return best

    def _fit(self, tried: Sequence["_Tried"], base: Correction | None) -> Correction:
        """The sequence's own corrections, on top of `base`. Numbers that are not finite count as 0."""

        def problems() -> Iterator[Problem]:
            for i, (layer, seen, own, _) in enumerate(tried):
                z, wanted = (self._model.normed_input(layer, _fitted(each.x)) for each in (seen, own))
                change = wanted - (z if base is None else base.of(i).apply(z))
                yield Problem(z, change, self._model.query_weight(layer))

        return fit_each(problems(), self._dims, self._ops).to(tried[0].own.x.dtype)


class _Inputs(NamedTuple):
    """A layer's inputs [n, E], and their sum, which is finite where they are."""

    x: Tensor
    sum: Tensor


class _Tried(NamedTuple):
    """A layer whose scouts are made from the inputs `seen` of an earlier one.   own: its own inputs."""

    layer: int
    seen: _Inputs
    own: _Inputs
    sample: TrialSample


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
