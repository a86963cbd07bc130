"""Memory for blocks of keys and values; the host's pages and the device's slots are two pools of one kind."""

import torch

from ..errors import CapacityError
from ..kernels.memory import empty
from ..shape import ModelShape

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class BlockPool:
    """A fixed number of entries, each with room for one block over all layers and KV heads.

    k, v: [L, S, H, P, D], so that one head of one entry of one layer is contiguous. The operating system commits a
    CPU pool's memory only as entries are first written.
    """

    def __init__(self, shape: ModelShape, block_size: int, capacity: int, knob: str) -> None:
        """Make a pool of `capacity` entries; `knob` is the setting that an error about its size names."""
        size = (shape.num_layers, capacity, shape.num_kv_heads, block_size, shape.head_dim)
        self.k, self.v = (empty(size, TORCH_DTYPES[shape.dtype]) for _ in range(2))
        self.capacity = capacity
        self.entry_bytes = shape.block_bytes(block_size)
        self._knob = knob
        self._free = list(range(capacity - 1, -1, -1))

    @property
    def available(self) -> int:
        """Entries that can still be taken."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Take `count` entries. Raises CapacityError, and takes none, when fewer are left."""
        if count > self.available:
            raise CapacityError(
                f"{count} blocks ({count * self.entry_bytes} bytes) are needed and {self.available} of "
                f"{self.capacity} are free: raise {self._knob}"
            )
        return [self._free.pop() for _ in range(count)]

    def give(self, entries: list[int]) -> None:
        """Return entries; their content is lost."""
        self._free.extend(entries)
