"""Queries of another program's layers: what differs between programs is how a normed input becomes queries."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from ..attention.predict import Adjust, QueryModel
from ..kernels.reference_rows import RowCorrection, corrected, linear
from ..types import Rope


class NormedQueries(QueryModel):
    """A query model that makes queries from normed inputs."""

    @abstractmethod
    def queries(self, layer: int, z: Tensor, rope: Rope) -> Tensor:
        """The queries [n, H, G, D] of a layer's normed inputs z [n, E]."""

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Rows x [T, A] times a correction's weights; see `linear`."""
        return linear(x, weight)

    @override
    def project_query(self, layer: int, x: Tensor, rope: Rope, adjust: Adjust | None = None) -> Tensor:
        z = self.normed_input(layer, x)
        return self.queries(layer, z if adjust is None else adjust(z), rope)

    @override
    def project_corrected(self, layer: int, x: Tensor, rope: Rope, by: Sequence[RowCorrection]) -> Tensor:
        return self.queries(layer, corrected(self.normed_input(layer, x), by, self.multiply), rope)


def scaled(q: Tensor, scaling: float) -> Tensor:
    """Queries for attention with the shape's own scale, where a model's scale is `scaling` times that."""
    return q if abs(scaling - 1) < 1e-6 else q * scaling
