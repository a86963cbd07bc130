"""The sizes of a model that attention and memory planning depend on, and the costs that follow from them."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from .errors import ConfigError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PACKED_BITS = {"int8": 8, "int4": 4}
"""Bits of a channel in packed pages."""


@dataclass(frozen=True)
class ModelShape:
    """Layer and head counts of a decoder, and the dtype of its KV cache."""

    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    dtype: str = "float32"

    def split(self, ranks: int) -> "ModelShape":
        """What each of `ranks` has of the model: its heads and its part of the feed-forward layers.

        Raises ConfigError where they cannot be shared evenly.
        """
        for count, what in ((self.num_kv_heads, "KV heads"), (self.intermediate_size, "feed-forward channels")):
            if count % ranks:
                raise ConfigError(
                    f"{ranks} ranks cannot share the model's {count} {what} evenly: "
                    f"set tensor_parallel_size to a divisor of {math.gcd(self.num_kv_heads, self.intermediate_size)}"
                )
        return replace(
            self,
            num_query_heads=self.num_query_heads // ranks,
            num_kv_heads=self.num_kv_heads // ranks,
            intermediate_size=self.intermediate_size // ranks,
        )

    @cached_property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_query_heads // self.num_kv_heads

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one element of the KV cache."""
        return DTYPE_BYTES[self.dtype]

    @property
    def scale(self) -> float:
        """The factor that query-key products are multiplied with."""
        return 1 / math.sqrt(self.head_dim)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token over all layers and KV heads."""
        return self.num_layers * self.num_kv_heads * 2 * self.head_dim * self.dtype_bytes

    def matrix_numbers(self, *, tied: bool) -> int:
        """Numbers in all matrices of weights.   tied: whether embedding and head are one table."""
        heads = 2 * self.num_query_heads + 2 * self.num_kv_heads
        layer = self.hidden_size * (heads * self.head_dim + 3 * self.intermediate_size)
        tables = (1 if tied else 2) * self.vocab_size * self.hidden_size
        return self.num_layers * layer + tables

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of keys and values of `tokens` tokens over all layers."""
        return tokens * self.kv_bytes_per_token

    def block_bytes(self, block_size: int) -> int:
        """Bytes of one block over all layers and KV heads: one page, or one slot."""
        return self.kv_bytes(block_size)

    def page_bytes(self, block_size: int, kv_dtype: str) -> int:
        """Bytes of one host page over all layers and KV heads; see `EngineConfig.kv_dtype`."""
        if kv_dtype == "auto":
            return self.block_bytes(block_size)
        return self.packed_block_bytes(block_size, PACKED_BITS[kv_dtype])

    def packed_block_bytes(self, block_size: int, bits: int) -> int:
        """Bytes of one block in `bits` bits a channel over all layers and KV heads, its bounds included.

        Words of four bytes go along the channels of keys and the tokens of values. Each channel has two bounds of two
        bytes.
        """
        words = math.ceil(self.head_dim * bits / 32) * block_size + math.ceil(block_size * bits / 32) * self.head_dim
        return self.num_layers * self.num_kv_heads * 4 * (words + 2 * self.head_dim)


class NamedShape(NamedTuple):
    """A model without its weights.

    tied: whether embedding and head are one table.
    weights: bytes that all matrices take on a CPU where they stay in blocks of few bits; None where they are in the
    shape's dtype.
    trained: positions that YaRN stretches, where those are fewer than the model takes without it; or None.
    """

    name: str
    shape: ModelShape
    tied: bool
    weights: int | None = None
    trained: int | None = None
