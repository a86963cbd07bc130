"""What of a model of transformers is served: its layers with full attention, and their sizes."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ...cache.pool import TORCH_DTYPES
from ...errors import ConfigError, UnsupportedModelError
from ...shape import ModelShape
from .refusals import check_state

LEAN = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose queries are a norm, a projection, perhaps a norm of heads, and a rotary embedding of all channels."""
PROBED = ("gemma3_text", "glm4", "gpt_oss", "granite", "mixtral", "qwen3_moe", "smollm3")
"""Families whose queries their own attention modules make."""


@dataclass(frozen=True)
class ServedModel:
    """A model, and what of it is served.

    numbers: of the layers with full attention among all layers.   layers: these.   shape: of these alone.
    scaling: what their queries are multiplied with, beside the shape's own scale.   sink_logits: see `Softmax`.
    """

    model: PreTrainedModel
    numbers: tuple[int, ...]
    layers: tuple[nn.Module, ...]
    shape: ModelShape
    scaling: float
    sink_logits: Tensor | None

    @property
    def attentions(self) -> list[Any]:
        """The attention modules of the served layers."""
        return [layer.get_submodule("self_attn") for layer in self.layers]

    @property
    def lean(self) -> bool:
        """Whether queries can be made without the attention modules."""
        return self.model.config.model_type in LEAN

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device


def read_model(model: object) -> ServedModel:
    """What of a model is served. Raises ConfigError and UnsupportedModelError where nothing can be."""
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(f"scout takes a model of transformers, and here is a {type(model).__name__}")
    name, config = type(model).__name__, model.config
    if config.model_type not in LEAN + PROBED or not isinstance(model, GenerationMixin):
        known = ", ".join(sorted(LEAN + PROBED))
        raise UnsupportedModelError(
            f"{name} (model_type {config.model_type!r}) is not among the causal models that scout knows: {known}"
        )
    check_state(model)
    devices = {str(parameter.device) for parameter in model.parameters()}
    if len(devices) != 1 or model.device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{name} is on {', '.join(sorted(devices))}, and scout needs it on one CPU or GPU")
    cached = DynamicCache(config=config).layers
    numbers = tuple(number for number, layer in enumerate(cached) if type(layer) is DynamicLayer)
    if not numbers:
        raise UnsupportedModelError(
            f"every layer of {name} has a sliding window, and scout serves layers with full attention"
        )
    all_layers = model.base_model.get_submodule("layers")
    assert isinstance(all_layers, nn.ModuleList)
    layers = tuple(all_layers[number] for number in numbers)
    served = ServedModel(model, numbers, layers, _shape(model, layers), 1.0, None)
    check_queries(served)
    scaling = {_scaling(name, layer.get_submodule("self_attn")) for layer in layers}
    if len(scaling) != 1:
        raise UnsupportedModelError(
            f"layers of {name} scale their scores by {sorted(scaling)}, and scout by one number"
        )
    return replace(served, scaling=scaling.pop() / served.shape.scale, sink_logits=_sink_logits(served))


def check_queries(served: ServedModel) -> None:
    """Raises UnsupportedModelError where a query projection is not what scouts are made with."""
    if any(type(getattr(attention, "q_proj", None)) is not nn.Linear for attention in served.attentions):
        name = type(served.model).__name__
        raise UnsupportedModelError(f"the query projection of {name} is not a plain nn.Linear, as scout needs it")


def _shape(model: PreTrainedModel, layers: tuple[nn.Module, ...]) -> ModelShape:
    config, name = model.config, type(model).__name__
    dtypes = {dtype: known for known, dtype in TORCH_DTYPES.items()}
    if model.dtype not in dtypes:
        raise ConfigError(f"{name} is in {model.dtype}, and scout knows {', '.join(TORCH_DTYPES)}")
    return ModelShape(
        num_layers=len(layers),
        num_query_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=layers[0].get_submodule("self_attn").head_dim,  # type: ignore[arg-type]  # a number
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        dtype=dtypes[model.dtype],
    )


def _sink_logits(served: ServedModel) -> Tensor | None:
    sinks: list[Any] = [getattr(attention, "sinks", None) for attention in served.attentions]
    if sinks[0] is None:
        return None
    shape = served.shape
    return torch.stack(sinks).detach().float().view(-1, shape.num_kv_heads, shape.group_size)


def _scaling(name: str, attention: Any) -> float:  # noqa: ANN401  # of no one type
    """What an attention module multiplies scores with. Raises UnsupportedModelError for what scout does not compute."""
    if getattr(attention, "attn_logit_softcapping", None) is not None:
        raise UnsupportedModelError(f"{name} caps its attention scores (attn_logit_softcapping), which scout does not")
    if not attention.is_causal:
        raise UnsupportedModelError(f"the attention of {name} is not causal")
    return float(attention.scaling)
