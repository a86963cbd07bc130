"""The cache that transformers sees: it counts tokens, and leaves keys and values to the session's store."""

import time
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin
from typing_extensions import override

from ...errors import ConfigError


class Limit(NamedTuple):
    """How long sequences may become: `new` tokens after the prompt, or `total` tokens with it, whichever is more."""

    new: int = 0
    total: int = 0

    def of(self, prompt: int) -> int:
        """Tokens that a sequence whose prompt has `prompt` tokens may become."""
        return max(prompt + self.new, self.total)


class CountingLayer(CacheLayerMixin):
    """A layer with full attention: new keys and values go through to the attention function."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_initialized = False
        self._count = 0

    @override
    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    @override
    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.is_initialized = True
        self._count += key_states.shape[-2]
        return key_states, value_states

    @override
    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._count + query_length, 0

    @override
    def get_seq_length(self) -> int:
        return self._count

    @override
    def get_max_length(self) -> int:
        return -1

    @override
    def reset(self) -> NoReturn:
        raise _refusal("reset")

    @override
    def reorder_cache(self, beam_idx: Tensor) -> NoReturn:
        raise _refusal("reordered")

    def crop(self, tokens_to_remove: int) -> NoReturn:
        """Refuse, as closed blocks never change."""
        raise _refusal("cropped")

    def batch_repeat_interleave(self, repeats: int) -> NoReturn:
        """Refuse, as sequences have their rows."""
        raise _refusal("repeated")

    def batch_select_indices(self, indices: Tensor) -> NoReturn:
        """Refuse, as sequences have their rows."""
        raise _refusal("selected from")


class ScoutCache(Cache):
    """Layers that count for the served ones, and the library's own for the others, which have sliding windows.

    limit: how long its sequences may become.   made: when it was made.
    """

    def __init__(self, config: PretrainedConfig, numbers: Sequence[int], limit: Limit) -> None:
        """`numbers`: of the served layers."""
        layers = list(DynamicCache(config=config).layers)
        for number in numbers:
            layers[number] = CountingLayer()
        super().__init__(layers=layers)
        self.limit = limit
        self.made = time.perf_counter()


def _refusal(what: str) -> ConfigError:
    return ConfigError(f"the cache of scout cannot be {what}: its sequences only grow, until generate ends")
