"""Queries of a layer from any input: by its projection, or by a probe of its own attention module."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from ...kernels.reference_rows import rotate
from ...types import Rope
from ..queries import NormedQueries, scaled
from .model import ServedModel


class Probe:
    """Takes a layer's query out of its own attention module, which is called for nothing else.

    The module calls the registered attention function, which asks `answer` first.
    """

    def __init__(self) -> None:
        self._taken: list[Tensor] | None = None

    def query(self, attention: nn.Module, z: Tensor, rope: Rope) -> Tensor:
        """The queries of normed inputs z [n, E]: [n, heads, D]."""
        taken = self._taken = []
        try:
            tables = (rope.cos[None].to(z.dtype), rope.sin[None].to(z.dtype))
            attention(hidden_states=z[None], position_embeddings=tables, attention_mask=None)
        finally:
            self._taken = None
        (q,) = taken
        return q[0].transpose(0, 1)

    def answer(self, q: Tensor) -> Tensor | None:
        """What the attention function returns for q [1, heads, n, D] while a query is taken; None at other times."""
        if self._taken is None:
            return None
        self._taken.append(q)
        return q.new_zeros(q.shape).transpose(1, 2)


class ModuleQueries(NormedQueries):
    """The queries of a served model's layers, counted as `ServedModel.layers` are.

    lean: whether they are made without the attention modules; see `ServedModel.lean`.
    """

    def __init__(self, served: ServedModel, probe: Probe, *, lean: bool) -> None:
        self._served = served
        self._attentions: Sequence[nn.Module] = served.attentions
        self._probe = probe
        self._lean = lean

    @override
    def normed_input(self, layer: int, x: Tensor) -> Tensor:
        z: Tensor = self._served.layers[layer].get_submodule("input_layernorm")(x)
        return z

    @override
    def query_weight(self, layer: int) -> Tensor:
        return self._attentions[layer].get_submodule("q_proj").get_parameter("weight").detach()

    @override
    @torch.no_grad()
    def queries(self, layer: int, z: Tensor, rope: Rope) -> Tensor:
        """The queries [n, H, G, D] of normed inputs z [n, E]."""
        shape = self._served.shape
        q = self._project(layer, z, rope) if self._lean else self._probe.query(self._attentions[layer], z, rope)
        heads = scaled(q, self._served.scaling).contiguous()
        return heads.view(-1, shape.num_kv_heads, shape.group_size, shape.head_dim)

    def _project(self, layer: int, z: Tensor, rope: Rope) -> Tensor:
        """The queries [n, heads, D] of a lean family."""
        attention = self._attentions[layer]
        q: Tensor = attention.get_submodule("q_proj")(z).view(len(z), -1, self._served.shape.head_dim)
        if hasattr(attention, "q_norm"):
            q = attention.get_submodule("q_norm")(q)
        return rotate(q, rope)
