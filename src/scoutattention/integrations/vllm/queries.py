"""Queries of vLLM's layers from any input, by the layers' own modules."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from ...errors import UnsupportedModelError
from ...kernels.native import RowKernels
from ...models.decoder import FEW_ROWS
from ...runtime.ranks import Ranks, gathered
from ...runtime.workers import Workers
from ...shape import ModelShape
from ...types import Rope
from ..queries import NormedQueries, scaled

CALLED_WITH = {"positions", "hidden_states"}
"""What an attention module must take, and all that it may need."""


class ServedLayer(NamedTuple):
    """A decoder layer of vLLM.   block: the layer.   attend: its `Attention`, to which q, k and v go, rotated."""

    block: nn.Module
    attend: nn.Module


def place(positions: Tensor) -> Rope:
    """Positions, int64 [T], in the place of rotary tables: vLLM's layers rotate by positions, and nobody else does."""
    return Rope(positions, positions)


class LayerQueries(NormedQueries):
    """The queries of served layers. A layer's attention module is run as far as the call of its `Attention`."""

    def __init__(
        self,
        name: str,
        layers: Sequence[ServedLayer],
        shape: ModelShape,
        scaling: float,
        ranks: Ranks,
        workers: Workers,
    ) -> None:
        """`name`: of the model.   shape: of this rank's part.   scaling: of queries, beside the shape's own scale."""
        self._name = name
        self._layers = layers
        self._shape = shape
        self._scaling = scaling
        self._ranks = ranks
        self._few_rows = RowKernels(workers)
        self._taken: list[Tensor] | None = None
        for _, attend in layers:
            attend.register_forward_pre_hook(self._take)

    def check(self) -> None:
        """Raises UnsupportedModelError where a layer is not a norm, and attention to what it gives."""
        for block, _ in self._layers:
            found = {what for what in ("input_layernorm", "self_attn.qkv_proj") if not _has(block, what)}
            if not found:
                parameters = inspect.signature(block.get_submodule("self_attn").forward).parameters.values()
                kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
                found = {one.name for one in parameters if one.default is one.empty and one.kind is kind} ^ CALLED_WITH
            if found:
                raise UnsupportedModelError(
                    f"scouts of {self._name} cannot be made, because its {type(block).__name__} differs from Llama's "
                    f"in {', '.join(sorted(found))}: set scout's device_memory to 'all', or budget to null"
                )

    @override
    def normed_input(self, layer: int, x: Tensor) -> Tensor:
        z: Tensor = self._layers[layer].block.get_submodule("input_layernorm")(x.contiguous())
        return z

    @override
    def query_weight(self, layer: int) -> Tensor:
        """From the products of unit vectors: vLLM packs weights for its own kernels."""
        project, size = self._layers[layer].block.get_submodule("self_attn.qkv_proj"), self._shape.hidden_size
        rows = self._shape.num_query_heads * self._shape.head_dim
        units = torch.eye(size, dtype=getattr(torch, self._shape.dtype))
        bias = project(torch.zeros_like(units[:1]))[0][:, :rows]
        mine = (project(units)[0][:, :rows] - bias).T.contiguous()
        return gathered(self._ranks, mine).flatten(0, 1)

    @override
    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._few_rows.linear(x, weight).to(x.dtype) if len(x) <= FEW_ROWS else super().multiply(x, weight)

    @override
    def queries(self, layer: int, z: Tensor, rope: Rope) -> Tensor:
        """The queries [n, H, G, D] of normed inputs z [n, E] at the positions of `place`.

        vLLM's kernels take it that what they read is contiguous.
        """
        taken = self._taken = []
        try:
            self._layers[layer].block.get_submodule("self_attn")(
                positions=rope.cos.contiguous(), hidden_states=z.contiguous()
            )
        except _Taken:
            pass
        finally:
            self._taken = None
        shape = self._shape
        (q,) = taken
        return scaled(q.reshape(-1, shape.num_kv_heads, shape.group_size, shape.head_dim), self._scaling)

    def _take(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Before an `Attention` runs: if a query is wanted, this is it, and the rest need not run."""
        if self._taken is not None:
            self._taken.append(arguments[0])
            raise _Taken


class _Taken(Exception):
    """Says that a query was taken, from inside an attention module to outside it."""


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True
