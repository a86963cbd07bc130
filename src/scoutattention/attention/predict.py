"""Scouts: queries of later layers, predicted from the input of an earlier one."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from ..config import ScoutConfig
from ..errors import ConfigError
from ..kernels import reference_rows
from ..types import Rope

Adjust = Callable[[Tensor], Tensor]
Linear = Callable[[Tensor, Tensor], Tensor]


class QueryModel(Protocol):
    """What a predictor needs of a model."""

    def normed_input(self, layer: int, x: Tensor) -> Tensor:
        """A layer's input norm of any layer's input x [B, E]."""
        ...

    def project_query(self, layer: int, x: Tensor, rope: Rope, adjust: Adjust | None = None) -> Tensor:
        """A layer's own norm, `adjust` [B, E] -> [B, E], query projection and rotary embedding: [B, H, G, D]."""
        ...


class Predictor(Protocol):
    """Makes scouts."""

    def predict(self, layer: int, x: Tensor, rope: Rope) -> Tensor:
        """The queries [B, H, G, D] that a layer will have in rows 0 to B - 1, from an earlier one's inputs x [B, E]."""
        ...


class PlainPredictor:
    """A layer's own query projection, applied to an earlier layer's input (ScoutAttention, arXiv 2603.27138).

    It works because the residual stream changes slowly; it does not in the first layers.
    """

    def __init__(self, model: QueryModel) -> None:
        self._model = model

    def predict(self, layer: int, x: Tensor, rope: Rope) -> Tensor:
        """See `Predictor.predict`."""
        return self._model.project_query(layer, x, rope)


class CalibratedPredictor:
    """The plain predictor with each sequence's own correction of the normed input: z + z left right^T.

    left, right: [L, R, E, rank], zero where a layer's correction was not fitted or did not help. The correction comes
    before bias and QK-norm, so it needs to know of neither.
    """

    def __init__(
        self, model: QueryModel, corrections: tuple[Tensor, Tensor], linear: Linear = reference_rows.linear
    ) -> None:
        """`linear`: x [B, A] times the transposes of weights [B, ..., A]; fastest where left is kept transposed."""
        self._model = model
        self.left, self.right = corrections
        self._linear = linear

    def predict(self, layer: int, x: Tensor, rope: Rope) -> Tensor:
        """See `Predictor.predict`."""
        left, right = self.left[layer, : x.shape[0]], self.right[layer, : x.shape[0]]

        def adjust(z: Tensor) -> Tensor:
            return z + self._linear(self._linear(z, left.mT), right)

        return self._model.project_query(layer, x, rope, adjust)


def source_layers(config: ScoutConfig, num_layers: int) -> list[int]:
    """The layer whose input makes each layer's scout; a layer that is its own source uses its true query.

    Raises ConfigError where `true_query_layers` names a layer that the model does not have.
    """
    ahead = 0 if config.predictor == "oracle" else config.lookahead
    own = set(config.true_query_layers or ())
    if not own <= set(range(num_layers)):
        raise ConfigError(f"true_query_layers={config.true_query_layers} names layers outside 0..{num_layers - 1}")
    return [layer if layer in own else max(0, layer - ahead) for layer in range(num_layers)]
