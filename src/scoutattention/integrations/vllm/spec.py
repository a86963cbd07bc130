"""What vLLM's own memory holds of a request whose keys and values are elsewhere: one block, as a ticket."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from typing_extensions import override
from vllm.v1.core.single_type_kv_cache_manager import SlidingWindowManager
from vllm.v1.kv_cache_interface import AttentionSpec, SlidingWindowSpec
from vllm.v1.kv_cache_spec_registry import register_kv_cache_spec


class OneBlockManager(SlidingWindowManager):
    """Gives each request one block when it is admitted, and none after that. Nobody writes to it or reads it."""

    @override
    def get_num_blocks_to_allocate(self, request_id: str, *args: Any, **kwargs: Any) -> int:
        return int(not self.req_to_blocks.get(request_id))

    @override
    def allocate_new_blocks(self, request_id: str, *args: Any, **kwargs: Any) -> list[Any]:
        held = self.req_to_blocks[request_id]
        new: list[Any] = [] if held else self.block_pool.get_new_blocks(1)
        held.extend(new)
        return new

    @override
    def cache_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the block holds no tokens."""

    @override
    def remove_skipped_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the block stays until the request ends."""

    @override
    def get_num_skipped_tokens(self, num_computed_tokens: int) -> int:
        return 0

    @override
    @classmethod
    def find_longest_cache_hit(
        cls, block_hashes: object, max_length: int, kv_cache_group_ids: Sequence[int], *args: Any, **kwargs: Any
    ) -> tuple[tuple[list[Any], ...], int]:
        return tuple([] for _ in kv_cache_group_ids), 0


@register_kv_cache_spec(manager_class=OneBlockManager, uniform_type_base_spec=SlidingWindowSpec)
@dataclass(frozen=True, kw_only=True)
class OneBlockSpec(SlidingWindowSpec):
    """A layer whose keys and values are in scout's store: a request has one block of it, however long it is."""

    @override
    def max_admission_blocks_per_request(self, *args: Any, **kwargs: Any) -> int:
        return 1

    @override
    def max_memory_usage_bytes(self, *args: Any, **kwargs: Any) -> int:
        size: int = self.page_size_bytes
        return size


def one_block(spec: AttentionSpec) -> OneBlockSpec:
    """The same layer with one block for each request."""
    return OneBlockSpec(**{item.name: getattr(spec, item.name) for item in fields(AttentionSpec)}, sliding_window=1)
