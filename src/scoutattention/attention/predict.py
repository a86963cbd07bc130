"""Scouts: queries of later layers, predicted from the input of an earlier one."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from typing_extensions import override

from ..config import ScoutConfig
from ..errors import ConfigError
from ..kernels.reference_rows import RowCorrection
from ..types import Rope
from .prompt.correction import Correction

Adjust = Callable[[Tensor], Tensor]
"""Changes a layer's normed input z [B, E] -> [B, E]."""


class QueryModel(Protocol):
    """The operations of a model that a predictor needs."""

    def normed_input(self, layer: int, x: Tensor) -> Tensor:
        """A layer's input norm of any layer's input x [B, E]."""
        ...

    def query_weight(self, layer: int) -> Tensor:
        """What projects a layer's normed input to queries, before bias, norm and rotary embedding: [H * G * D, E].

        Of all ranks, each of which must ask for it.
        """
        ...

    def project_query(self, layer: int, x: Tensor, rope: Rope, adjust: Adjust | None = None) -> Tensor:
        """A layer's own norm, `adjust` [B, E] -> [B, E], query projection and rotary embedding: [B, H, G, D]."""
        ...

    def project_corrected(self, layer: int, x: Tensor, rope: Rope, by: Sequence[RowCorrection]) -> Tensor:
        """`project_query` with a correction of each row's normed input."""
        ...


class Predictor(Protocol):
    """Makes scouts."""

    def predict(self, layer: int, x: Tensor, rope: Rope, rows: slice | Tensor) -> Tensor:
        """A layer's queries [B, H, G, D], from an earlier layer's inputs x [B, E].   rows: see `Batch`."""
        ...


class PlainPredictor(Predictor):
    """A layer's own query projection, applied to an earlier layer's input (ScoutAttention, arXiv 2603.27138).

    It works because the residual stream changes slowly; it does not in the first layers.
    """

    def __init__(self, model: QueryModel) -> None:
        self._model = model

    @override
    def predict(self, layer: int, x: Tensor, rope: Rope, rows: slice | Tensor) -> Tensor:
        return self._model.project_query(layer, x, rope)


class CalibratedPredictor(Predictor):
    """The plain predictor with two corrections of the normed input: one of the model, and each sequence's own on top.

    stored: the model's [L, E, dims], or None where there is none.   uses_stored: bool [L, R], the rows that it helps.
    left, right: [L, R, E, dims], the sequences' own; zero where a layer's was not fitted or did not help.
    Corrections come before bias and QK-norm, so they need to know of neither.
    """

    def __init__(self, model: QueryModel, own: tuple[Tensor, Tensor], stored: Correction | None = None) -> None:
        """`own`: left and right, of which native products need left kept transposed."""
        self._model = model
        self.left, self.right = own
        self.stored = None if stored is None else Correction(stored.left.mT.contiguous().mT, stored.right.contiguous())
        self.uses_stored = torch.zeros(self.left.shape[:2], dtype=torch.bool, device=self.left.device)

    @override
    def predict(self, layer: int, x: Tensor, rope: Rope, rows: slice | Tensor) -> Tensor:
        by = [RowCorrection(self.left.mT[layer, rows], self.right[layer, rows])]
        if self.stored is not None:
            left, right = self.stored.of(layer)
            by.insert(0, RowCorrection(left.mT, right, self.uses_stored[layer, rows]))
        return self._model.project_corrected(layer, x, rope, by)

    def set(self, layer: int, row: int, own: Correction | None, uses_stored: Tensor) -> None:
        """Say what corrects a layer's scouts of the sequence in a row.   uses_stored: bool []."""
        self.uses_stored[layer, row] = uses_stored
        self.left[layer, row], self.right[layer, row] = (0.0, 0.0) if own is None else own


def source_layers(config: ScoutConfig, num_layers: int) -> list[int]:
    """The layer whose input makes each layer's scout; a layer that is its own source uses its true query.

    Raises ConfigError where `true_query_layers` names a layer that the model does not have.
    """
    ablation = config.ablation
    ahead = 0 if ablation.predictor == "oracle" else config.lookahead
    own = set(ablation.true_query_layers or ())
    if not own <= set(range(num_layers)):
        raise ConfigError(f"true_query_layers={ablation.true_query_layers} names layers outside 0..{num_layers - 1}")
    return [layer if layer in own else max(0, layer - ahead) for layer in range(num_layers)]
