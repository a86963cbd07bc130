"""Memory for blocks of keys and values; the host's pages and the device's slots are two pools of one kind."""

from collections.abc import Iterator
from weakref import finalize

import torch
from torch import Tensor

from ..config import KVDTypeName
from ..errors import CapacityError
from ..kernels.ops import Ops
from ..runtime.memory import CPU, empty
from ..runtime.packed import Packed, empty_packed
from ..runtime.pinned import pin, unpin
from ..shape import PACKED_BITS, ModelShape

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Entries:
    """A fixed number of entries, each with room for one block over all layers and KV heads."""

    def __init__(self, capacity: int, entry_bytes: int, knob: str) -> None:
        """`knob` is the setting that an error about the size names."""
        self.capacity = capacity
        self.entry_bytes = entry_bytes
        self._knob = knob
        self._free = list(range(capacity - 1, -1, -1))

    @property
    def available(self) -> int:
        """Entries that can still be taken."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Take `count` entries, in ascending order. Raises CapacityError, and takes none, when fewer are left."""
        if count > self.available:
            raise CapacityError(
                f"{count} blocks ({count * self.entry_bytes} bytes) are needed and {self.available} of "
                f"{self.capacity} are free: raise {self._knob}"
            )
        return sorted(self._free.pop() for _ in range(count))

    def give(self, entries: list[int]) -> None:
        """Return entries; their content is lost."""
        self._free.extend(entries)


class BlockPool(Entries):
    """Blocks in the model's dtype.

    k, v: [L, S, H, P, D], so that one head of one entry of one layer is contiguous. The operating system commits a
    CPU pool's memory only as entries are first written.
    """

    def __init__(
        self,
        shape: ModelShape,
        block_size: int,
        capacity: int,
        knob: str,
        device: torch.device = CPU,
        *,
        scratch: bool = False,
    ) -> None:
        """scratch: whether there is one entry more, number `capacity`, which is never taken, for what is not kept."""
        super().__init__(capacity, shape.block_bytes(block_size), knob)
        size = (shape.num_layers, capacity + scratch, shape.num_kv_heads, block_size, shape.head_dim)
        self.k, self.v = (empty(size, TORCH_DTYPES[shape.dtype], device) for _ in range(2))

    @property
    def content(self) -> tuple[Tensor, ...]:
        """All that is kept of blocks: [L, S, ...] each."""
        return self.k, self.v

    def staged(self, k: Tensor, v: Tensor, ops: Ops) -> Iterator[Tensor]:
        """Keys, then values [n, H, P, D] on the device, as they are in pages: contiguous."""
        yield k.contiguous()
        yield v.contiguous()

    def pin(self) -> None:
        """Let a GPU read and write the pool where it is, until the pool is no more; see `pinned.pin`."""
        finalize(self, unpin, pin((self.k, self.v), self._knob)).atexit = False


class PackedPool(Entries):
    """Blocks in a few bits a channel: written once, when they are closed.

    k, v: packed [L, S, H, P, D].
    """

    def __init__(self, shape: ModelShape, block_size: int, capacity: int, knob: str, *, bits: int) -> None:
        super().__init__(capacity, shape.packed_block_bytes(block_size, bits), knob)
        size = (shape.num_layers, capacity, shape.num_kv_heads, block_size, shape.head_dim)
        self.k, self.v = empty_packed(size, bits, by_token=False), empty_packed(size, bits, by_token=True)

    @property
    def content(self) -> tuple[Tensor, ...]:
        """All that is kept of blocks: [L, S, ...] each."""
        return self.k.words, self.k.bounds, self.v.words, self.v.bounds

    def staged(self, k: Tensor, v: Tensor, ops: Ops) -> tuple[Packed, Packed]:
        """Keys and values [n, H, P, D] on the device, as they are in pages: packed."""
        device, bits = k.device, self.k.bits
        staged_k = empty_packed(k.shape, bits, by_token=False, device=device)
        staged_v = empty_packed(v.shape, bits, by_token=True, device=device)
        ops.write_blocks((k, v), (staged_k, staged_v), torch.arange(len(k), device=device))
        return staged_k, staged_v

    def pin(self) -> None:
        """Let a GPU read and write the pool where it is, until the pool is no more; see `pinned.pin`."""
        finalize(self, unpin, pin((self.k.memory, self.v.memory), self._knob)).atexit = False


def make_pages(
    shape: ModelShape, block_size: int, capacity: int, kv_dtype: KVDTypeName, device: torch.device = CPU
) -> BlockPool | PackedPool:
    """A pool of pages; see `EngineConfig.kv_dtype`.   device: the CPU, unless everything is on the device."""
    knob = "host_memory or lower max_model_len"
    if kv_dtype == "auto":
        return BlockPool(shape, block_size, capacity, knob, device)
    return PackedPool(shape, block_size, capacity, knob, bits=PACKED_BITS[kv_dtype])
