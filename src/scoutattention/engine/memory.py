"""How much of the cache goes where: sizes of the two pools, decided once, before any memory is taken."""

from dataclasses import dataclass

from ..config import EngineConfig, MemoryName, ScoutConfig
from ..errors import CapacityError, ConfigError
from ..shape import ModelShape

SLOTS_PER_BUDGET = 2
"""Slots beyond the budget keep drifting blocks resident; twice the budget keeps the CPU's share in single digits."""


@dataclass(frozen=True)
class MemoryPlan:
    """Sizes of the pools, in blocks over all layers and KV heads.

    max_len: longest sequence in tokens.   pages: the host pool.
    slots: the device pool, or None where the device holds every page and open blocks are pages too.
    most_slots: slots that one sequence may have, its open block not counted.
    least_slots: slots that a sequence with absent blocks needs for `on_miss` to work at all.
    """

    block_size: int
    max_len: int
    pages: int
    slots: int | None
    most_slots: int
    least_slots: int

    @property
    def resident(self) -> bool:
        """Whether the device holds every page, so that slots, if there are any, are for open blocks alone."""
        return self.slots is None or self.most_slots == 0

    def blocks(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def lanes(self, wanted: int) -> int:
        """Sequences that can run at once, of `wanted`."""
        if self.slots is None:
            return wanted
        lanes = min(wanted, self.slots // (1 + self.least_slots))
        if lanes == 0:
            raise CapacityError(
                f"device_memory holds {self.slots} blocks of {self.block_size} tokens, and one sequence needs "
                f"{1 + self.least_slots}: raise device_memory, or lower budget or block_size"
            )
        return lanes

    def quota(self, lanes: int, tokens: int) -> int:
        """Slots for a sequence that may become `tokens` long, when `lanes` sequences share the device."""
        if self.slots is None:
            return 0
        return min(self.slots // lanes - 1, self.most_slots, self.blocks(tokens))


def plan_memory(shape: ModelShape, scout: ScoutConfig, machine: EngineConfig, free_bytes: int) -> MemoryPlan:
    """Size the pools.   free_bytes: memory that the host can still give.

    Raises ConfigError for a length above the model's, CapacityError where not even one block fits.
    """
    max_len = machine.max_model_len or shape.max_positions
    if max_len > shape.max_positions:
        raise ConfigError(f"max_model_len={max_len} is above the model's own limit of {shape.max_positions} tokens")
    block_bytes = shape.block_bytes(scout.block_size)
    page_bytes = shape.page_bytes(scout.block_size, machine.kv_dtype)
    blocks = -(-max_len // scout.block_size)
    wanted = machine.max_num_seqs * blocks
    host_bytes = free_bytes // 2 if machine.host_memory is None else machine.host_memory
    pages = min(wanted, host_bytes // page_bytes)
    if pages == 0:
        raise _below_one_block("host_memory", host_bytes, page_bytes)
    slots, most = _device_entries(scout, machine, block_bytes, blocks)
    packed = machine.kv_dtype != "auto"
    if slots is None and packed:
        slots, most = machine.max_num_seqs, 0
    elif slots is not None and slots >= wanted:
        slots = min(slots, wanted + machine.max_num_seqs) if packed else None
    least = {"compute": 0, "drop": scout.always_blocks - 1, "fetch": min(scout.budget_blocks or blocks, blocks)}
    return MemoryPlan(scout.block_size, max_len, pages, slots, most, min(most, least[scout.on_miss]))


def device_memory(machine: EngineConfig) -> int | MemoryName:
    """What `EngineConfig.device_memory` means. The device is always the CPU, so None is everything."""
    return "all" if machine.device_memory is None else machine.device_memory


def _device_entries(scout: ScoutConfig, machine: EngineConfig, block_bytes: int, blocks: int) -> tuple[int | None, int]:
    """The device pool's entries (None: everything), and the slots that one sequence may have."""
    memory, budget = device_memory(machine), scout.budget_blocks
    if memory == "all" or (memory == "slots" and budget is None):
        return None, blocks
    if memory == "slots":
        most = min(blocks, SLOTS_PER_BUDGET * (budget or 0))
        return machine.max_num_seqs * (1 + most), most
    if memory < block_bytes:
        raise _below_one_block("device_memory", memory, block_bytes)
    return memory // block_bytes, blocks


def _below_one_block(knob: str, size: int, block_bytes: int) -> CapacityError:
    return CapacityError(f"{knob}={size} bytes is below one block of {block_bytes} bytes: raise {knob}")
