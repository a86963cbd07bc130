"""What of a model in vLLM is served: its decoder layers, and their sizes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import UnsupportedModelError
from ...runtime.ranks import Ranks
from ...shape import ModelShape
from .memory import shape_of
from .queries import ServedLayer

LAYER = re.compile(r"(.*?\.(\d+))\.")
"""The name of a decoder layer, and its number, at the beginning of what is in it."""
PLAIN = {"sliding_window": (None, -1), "logits_soft_cap": (None, 0), "alibi_slopes": (None,), "sinks": (None,)}
"""What vLLM's attention may do beside attending, and the values that turn it off."""


@dataclass(frozen=True)
class ServedModel:
    """A model in vLLM.   layers: in their order.   shape: of this rank's part.   whole: of all ranks' parts.

    scaling: what queries are multiplied with, beside the shape's own scale.
    """

    name: str
    layers: tuple[ServedLayer, ...]
    shape: ModelShape
    whole: ModelShape
    scaling: float


def read_model(model: nn.Module, config: Any, ranks: Ranks) -> ServedModel:  # noqa: ANN401  # vLLM's `VllmConfig`
    """What of a model is served. Raises ConfigError or UnsupportedModelError where it cannot be."""
    name = config.model_config.architecture
    layers = find_layers(name, model, config.compilation_config.static_forward_context)
    first: Any = layers[0].attend
    sizes = {(a.num_heads, a.num_kv_heads, a.head_size, a.impl.scale) for _, a in layers}  # type: ignore[union-attr]
    if len(sizes) != 1:
        raise UnsupportedModelError(f"layers of {name} differ in their heads, and scout's plugin serves equal ones")

    def shape(parts: int) -> ModelShape:
        heads = (first.num_heads * parts, first.num_kv_heads * parts)
        return shape_of(config, len(layers), heads, first.head_size)

    own = shape(1)
    return ServedModel(name, layers, own, shape(ranks.size), first.impl.scale / own.scale)


def find_layers(name: str, model: nn.Module, attentions: Mapping[str, Any]) -> tuple[ServedLayer, ...]:
    """The decoder layers of a model, in their order.   attentions: what attends in it, by its name.

    Raises UnsupportedModelError where a layer attends otherwise than in full, once, and causally.
    """
    found: dict[int, ServedLayer] = {}
    for path, attend in attentions.items():
        match = LAYER.match(path)
        impl = getattr(attend, "impl", None)
        if match is None or impl is None or getattr(attend, "attn_type", None) != "decoder":
            raise UnsupportedModelError(f"{name} has {path}, which is no causal attention of a decoder layer")
        if int(match[2]) in found:
            raise UnsupportedModelError(
                f"layer {match[2]} of {name} attends twice, and scout's plugin serves one attention"
            )
        for what, off in PLAIN.items():
            value = getattr(impl, what, None)
            if isinstance(value, torch.Tensor) or value not in off:
                raise UnsupportedModelError(
                    f"{path} of {name} has {what}, and scout's plugin serves full attention alone"
                )
        if attend.kv_sharing_target_layer_name is not None:
            raise UnsupportedModelError(f"{path} of {name} reads another layer's keys, which scout's plugin does not")
        found[int(match[2])] = ServedLayer(model.get_submodule(match[1]), attend)
    if sorted(found) != list(range(len(found))) or not found:
        raise UnsupportedModelError(
            f"{name} has attention in layers {sorted(found)}, and scout's plugin serves all of them"
        )
    return tuple(found[number] for number in sorted(found))
