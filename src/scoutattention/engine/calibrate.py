"""Calibrating a model on text: one pass over all of it, in windows, that fits each layer's correction as it goes."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..attention.predict import Adjust
from ..attention.prompt.correction import Correction, Problem, fit_low_rank
from ..errors import CalibrationError
from ..kernels.plain import PlainOps
from ..kernels.reference_prompt import causal
from ..models.decoder import Decoder
from ..types import Rope
from .runner import Progress

WINDOW = 1024
"""Tokens that are read together."""
HELD_OUT = 8
"""One of so many windows judges, and is not fitted to."""
LEAST_WINDOWS = 4


@dataclass(frozen=True)
class Score:
    """How close predicted queries are: the mean cosine, and the error's root mean square over the queries' own."""

    cosine: float
    error: float


@dataclass(frozen=True)
class LayerScore:
    """A layer on text that was not fitted to, without a correction and with it.   kept: whether it helps."""

    layer: int
    plain: Score
    calibrated: Score
    kept: bool


@dataclass(frozen=True)
class Fit:
    """A model's corrections for one lookahead, float32 [L, E, dims], zero where none is kept; scores of each layer."""

    lookahead: int
    corrections: Correction
    scores: list[LayerScore]


@torch.inference_mode()
def calibrate(
    decoder: Decoder, token_ids: list[int], lookaheads: Sequence[int], dims: int | None, progress: Progress
) -> list[Fit]:
    """Fit every layer's correction, for each lookahead, on text.   dims: None is the most.

    Raises CalibrationError where there are fewer than LEAST_WINDOWS windows of text, or the model's numbers on it are
    not finite.
    """
    windows = len(token_ids) // WINDOW
    if windows < LEAST_WINDOWS:
        raise CalibrationError(
            f"the text has {len(token_ids)} tokens, and a calibration needs {LEAST_WINDOWS * WINDOW}: "
            "give more --text, or raise --tokens"
        )
    shape, total = decoder.shape, windows * WINDOW
    most = min(shape.hidden_size, shape.num_query_heads * shape.head_dim)
    size = (shape.num_layers, shape.hidden_size, min(dims or most, most))
    fits = [Fit(ahead, Correction(torch.zeros(size), torch.zeros(size)), []) for ahead in lookaheads]
    held_out = torch.arange(total) // WINDOW % HELD_OUT == min(windows, HELD_OUT) - 1
    rope = decoder.rope(torch.arange(total) % WINDOW, WINDOW)
    fitter = _Fitter(decoder, fits, rope, held_out)
    inputs: list[Tensor] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Generator[None, None, Tensor]:
        inputs.append(x.clone())
        yield from ()
        if len(inputs) == windows:
            fitter.see(layer, torch.cat(inputs))
            inputs.clear()
            progress(layer + 1, shape.num_layers)
        return causal(q, k, v, shape.scale)

    for _ in decoder.read(torch.tensor(token_ids[:total]), rope, attend, WINDOW):
        pass
    return fits


class _Fitter:
    """Fits each layer as its inputs come; layers come in order.   held_out: bool [n], the positions that judge."""

    def __init__(self, decoder: Decoder, fits: list[Fit], rope: Rope, held_out: Tensor) -> None:
        self._decoder = decoder
        self._fits = fits
        self._held_out = held_out
        self._rope = Rope(rope.cos[held_out], rope.sin[held_out])
        self._inputs: dict[int, Tensor] = {}

    def see(self, layer: int, x: Tensor) -> None:
        """Fit a layer with inputs x [n, E], for every lookahead."""
        if not x.isfinite().all():
            raise CalibrationError(f"the inputs of layer {layer} are not finite on this text: give another --text")
        self._inputs[layer] = x
        for fit in self._fits:
            source = max(0, layer - fit.lookahead)
            if source != layer:
                self._fit(fit, layer, self._inputs[source])
        self._inputs.pop(layer - max(fit.lookahead for fit in self._fits), None)

    def _fit(self, fit: Fit, layer: int, seen: Tensor) -> None:
        z, true = (self._decoder.normed_input(layer, x[~self._held_out]) for x in (seen, self._inputs[layer]))
        dims = fit.corrections.left.shape[-1]
        problem = Problem(z, true - z, self._decoder.query_weight(layer))
        found = fit_low_rank(problem, dims, PlainOps(z.device))
        plain = self._score(layer, seen)
        calibrated = self._score(layer, seen, found.to(z.dtype).apply)
        kept = calibrated.cosine > plain.cosine  # false where it is NaN
        if kept:
            fit.corrections.left[layer], fit.corrections.right[layer] = found
        fit.scores.append(LayerScore(layer, plain, calibrated, kept))

    def _score(self, layer: int, seen: Tensor, adjust: Adjust | None = None) -> Score:
        true, scouts = (
            self._decoder.project_query(layer, x[self._held_out], self._rope, change).float()
            for x, change in ((self._inputs[layer], None), (seen, adjust))
        )
        error = (scouts - true).square().sum() / true.square().sum()
        return Score(float(cosine_similarity(scouts, true, dim=-1).mean()), float(error.sqrt()))
