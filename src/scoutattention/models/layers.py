"""The parts of a decoder layer, as functions on tensors and the weights they need; the axes are in types.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..kernels.reference_rows import HeadPlacing, LayerEnd, RowCorrection
from ..runtime.stored import StoredMatrix

Weight = Tensor | StoredMatrix
"""A matrix of a model: numbers in its dtype, or a file's own blocks."""


@dataclass(frozen=True)
class LayerWeights:
    """One layer's weights; [A, B] maps B inputs to A outputs, I is the feed-forward size.

    Norms' weights are float32, matrices and biases in the model's dtype; a matrix may be in a file's own blocks. Of a
    model that ranks share, Q, H and I count what this rank has: its heads, and its channels of the feed-forward layer.
    qkv: [(Q + 2H) * D, E], queries, then keys, then values.   gate_up: [2 * I, E], gate, then up.
    qk_norm: [Q + H, D], the query norm's weight for every query head, then the key norm's for every KV head.
    paired: in each head of queries and keys, and of their bias, the two channels that rotate together are neighbours.
    """

    input_norm: Tensor
    qkv: Weight
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    output: Weight
    output_bias: Tensor | None
    post_norm: Tensor
    gate_up: Weight
    down: Weight
    paired: bool = False


class RowOps(Protocol):
    """What a layer computes of rows; see `kernels/reference_rows.py`. The results' dtype is the implementation's."""

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """Rows x [T, A] times the transpose of weight [B, A]."""
        ...

    def expand(self, weight: StoredMatrix, rows: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of a stored matrix as numbers [n, A]."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Rows x [..., A] over their root mean squares, times weight."""
        ...

    def add_norm(self, x: Tensor, change: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """The sum of rows x [T, A] and their change, and the norm of the sum."""
        ...

    def corrected_norm(self, x: Tensor, weight: Tensor, eps: float, by: Sequence[RowCorrection]) -> Tensor:
        """The norm of rows x [T, A] with what corrections change it by."""
        ...

    def place_heads(self, x: Tensor, how: HeadPlacing) -> tuple[Tensor, Tensor, Tensor]:
        """Projected heads x [T, Q + 2 H, D] as queries [T, Q, D], keys and values [T, H, D]."""
        ...

    def swiglu(self, x: Tensor) -> Tensor:
        """silu(gate) * up of x [T, 2 * I]."""
        ...


class LayerOps(Protocol):
    """What a layer computes of few rows, float32 and contiguous, in two calls instead of eight of `RowOps`.

    Results are those of `RowOps`, and float32.
    """

    def project_heads(self, x: Tensor, weight: Weight, how: HeadPlacing) -> tuple[Tensor, Tensor, Tensor]:
        """Rows x [T, A] times the transpose of weight [(Q + 2 H) * D, A], placed as `RowOps.place_heads` does."""
        ...

    def end_layer(self, x: Tensor, attended: Tensor, by: LayerEnd) -> tuple[Tensor, Tensor]:
        """The residual stream x [T, E] after a layer that attended to [T, A], and its norm, [T, E] each."""
        ...
