"""Scouts: queries of later layers, predicted from the input of an earlier one."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from ..types import Rope

ProjectQuery = Callable[[int, Tensor, Rope], Tensor]
"""(layer, x [B, E], rope) -> q [B, H, G, D]: a layer's own input norm, query projection and rotary embedding."""


class Predictor(Protocol):
    """Makes scouts."""

    def predict(self, layer: int, x: Tensor, rope: Rope) -> Tensor:
        """The query that `layer` will have, [B, H, G, D], from an earlier layer's input x [B, E]."""
        ...


class PlainPredictor:
    """A layer's own query projection, applied to an earlier layer's input (ScoutAttention, arXiv 2603.27138).

    It works because the residual stream changes slowly; it does not in the first layers.
    """

    def __init__(self, project_query: ProjectQuery) -> None:
        self._project_query = project_query

    def predict(self, layer: int, x: Tensor, rope: Rope) -> Tensor:
        """See `Predictor.predict`."""
        return self._project_query(layer, x, rope)
