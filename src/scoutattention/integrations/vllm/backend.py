"""vLLM's attention backend: its layers' queries, keys and values go to the worker's session."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from typing_extensions import override
from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import AttentionMetadataBuilder, CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionBackendImpl

from ...errors import ConfigError
from .session import Session


@dataclass
class ScoutMetadata:
    """What a layer is told of a batch: how many of its tokens are real.   session: has the rest."""

    num_actual_tokens: int
    session: Session


class ScoutImpl(CPUAttentionBackendImpl):
    """The attention of one layer.

    session: of the worker, once the model is loaded.   number: the layer's.
    """

    session: Session | None = None
    number: int = 0

    @override
    def forward(
        self,
        layer: object,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *args: Any,
        output: Tensor,
        **kwargs: Any,
    ) -> Tensor:
        """Attend.   query: [T, heads, D].   key, value: [T, H, D].   output: [T, heads, D], filled in, and returned.

        args: vLLM's memory of the layer, and what it tells of the batch: None where it has no requests.
        """
        told: ScoutMetadata | None = args[1]
        if told is not None:
            real = slice(told.num_actual_tokens)
            output[real] = told.session.attend(self.number, query[real], key[real], value[real])
        return output

    @override
    def do_kv_cache_update(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: keys and values go to the session's store."""


class ScoutBuilder(AttentionMetadataBuilder):
    """Starts the session's pass once for each batch of vLLM."""

    def __init__(self, kv_cache_spec: object, layer_names: list[str], vllm_config: object, device: object) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        layers = get_layers_from_vllm_config(vllm_config, Attention, layer_names)
        self._impl: ScoutImpl = next(iter(layers.values())).impl

    @override
    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> ScoutMetadata:
        """Say what a batch is of."""
        told, session = common_attn_metadata, self._impl.session
        if session is None:
            raise ConfigError("scout's session is not made yet: its worker loads the model")
        names = session.names()[: told.num_reqs]
        session.begin(
            names, told.query_start_loc_cpu.tolist()[: told.num_reqs + 1], told.seq_lens.tolist()[: told.num_reqs]
        )
        return ScoutMetadata(told.num_actual_tokens, session)


class ScoutBackend(CPUAttentionBackend):
    """Stands for the CPU's attention backend while a model is loaded."""

    @staticmethod
    @override
    def get_impl_cls() -> type[ScoutImpl]:
        return ScoutImpl

    @staticmethod
    @override
    def get_builder_cls() -> type[ScoutBuilder]:
        return ScoutBuilder
