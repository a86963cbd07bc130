"""What of a model in vLLM is served: its decoder layers, and their sizes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...cache.pool import TORCH_DTYPES
from ...errors import ConfigError, UnsupportedModelError
from ...runtime.ranks import Ranks
from ...shape import ModelShape
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
    """What of a model is served. Raises ConfigError and UnsupportedModelError where it cannot be."""
    name, hf = config.model_config.architecture, config.model_config.hf_text_config
    layers = find_layers(name, model, config.compilation_config.static_forward_context)
    first: Any = layers[0].attend
    sizes = {(a.num_heads, a.num_kv_heads, a.head_size, a.impl.scale) for _, a in layers}  # type: ignore[union-attr]
    if len(sizes) != 1:
        raise UnsupportedModelError(f"layers of {name} differ in their heads, and scout's plugin serves equal ones")
    dtypes = {dtype: known for known, dtype in TORCH_DTYPES.items()}
    if config.model_config.dtype not in dtypes:
        raise ConfigError(f"{name} is in {config.model_config.dtype}, and scout knows {', '.join(TORCH_DTYPES)}")

    def shape(parts: int) -> ModelShape:
        return ModelShape(
            num_layers=len(layers),
            num_query_heads=first.num_heads * parts,
            num_kv_heads=first.num_kv_heads * parts,
            head_dim=first.head_size,
            hidden_size=hf.hidden_size,
            intermediate_size=getattr(hf, "intermediate_size", None) or hf.hidden_size,
            vocab_size=hf.vocab_size,
            max_positions=config.model_config.max_model_len,
            dtype=dtypes[config.model_config.dtype],
        )

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
