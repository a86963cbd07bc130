"""How much of the cache goes where: sizes of the two pools, decided once, before any memory is taken."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from ..config import DigestName, EngineConfig, MemoryName, ScoutConfig
from ..errors import CapacityError, ConfigError
from ..shape import ModelShape
from .work_memory import LIBRARIES, Reading, prompts_bytes, step_bytes

SLOTS_PER_BUDGET = 2
"""Slots beyond the budget keep drifting blocks resident; twice the budget keeps the CPU share in single digits."""
SCAN_PART = 2
"""One in so many main dimensions is scanned. A quarter of them misses, in a few steps, blocks that matter much."""
KEPT_PART, WORD = (5, 8), 16
"""Five in eight main dimensions are kept, rounded up to whole words of so many codes. The others tell little."""
STATES_PART = 8
"""Beside the pages, one in so many of their bytes may be taken by what is kept of prompts, and not of their blocks."""
TABLE_BYTES = 16
"""Of a block and KV head: its slot, the interest in it, and its page."""


@dataclass(frozen=True)
class MemoryPlan:
    """Sizes of the pools, in blocks over all layers and KV heads.

    rows: sequences that run at once at most.   max_len: longest sequence in tokens.   pages: the host pool.
    slots: the device pool, or None where the device holds every page and open blocks are pages too.
    most_slots: slots that one sequence may have, its open block not counted.
    least_slots: slots that a sequence with absent blocks needs for `on_miss` to work at all.
    lineages: prompts whose state is kept for those that begin alike; 0 where none is.
    least_kept: blocks of the shortest prompt whose state is kept; unpacked, they take no less memory than it does.
    """

    block_size: int
    rows: int
    max_len: int
    pages: int
    slots: int | None
    most_slots: int
    least_slots: int
    lineages: int = 0
    least_kept: int = 1

    @property
    def widest(self) -> int:
        """Blocks of the longest sequence that the pool holds."""
        return min(self.blocks(self.max_len), self.pages)

    @property
    def resident(self) -> bool:
        """Whether the device holds every page, so that slots, if there are any, are for open blocks alone."""
        return self.slots is None or self.most_slots == 0

    def blocks(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def max_running(self, wanted: int) -> int:
        """Sequences that can run at once, at most `wanted`."""
        if self.slots is None:
            return wanted
        running = min(wanted, self.slots // (1 + self.least_slots))
        if running == 0:
            raise CapacityError(
                f"device_memory holds {self.slots} blocks of {self.block_size} tokens, and one sequence needs "
                f"{1 + self.least_slots}: raise device_memory, or lower budget or block_size"
            )
        return running

    def quota(self, running: int, tokens: int) -> int:
        """Slots for a sequence that may become `tokens` long, when `running` sequences share the device."""
        if self.slots is None:
            return 0
        return min(self.slots // running - 1, self.most_slots, self.blocks(tokens))


def plan_memory(
    shape: ModelShape, scout: ScoutConfig, engine_config: EngineConfig, free_bytes: int, free_device: int | None = None
) -> MemoryPlan:
    """Size the pools.   free_bytes: memory that the host can still give; free_device: that devices of their own can.

    Devices of their own keep room for prompts and steps; see `work_bytes`.
    Raises ConfigError for a length above the model's, or pages or digests that the device would have to read and
    cannot; CapacityError where not even one block fits, or the device has too little for the rest.
    """
    max_len = engine_config.max_model_len or shape.max_positions
    if max_len > shape.max_positions:
        raise ConfigError(
            f"max_model_len={max_len} is above the model's own limit of {shape.max_positions} tokens: lower it, or set "
            "rope_scaling if the model card says how to extend the context"
        )
    block_bytes = shape.block_bytes(scout.block_size)
    page_bytes = shape.page_bytes(scout.block_size, engine_config.kv_dtype)
    beside_bytes = 0 if free_device is None else digest_bytes(shape, scout)
    blocks = -(-max_len // scout.block_size)
    wanted = engine_config.max_num_seqs * blocks
    host_bytes = free_bytes // 2 if engine_config.host_memory is None else engine_config.host_memory
    state = state_bytes(shape, scout, engine_config)
    own = state * engine_config.max_num_seqs
    everything = device_memory(engine_config, scout) == "all"

    def work(pages: int) -> int:
        return work_bytes(shape, scout, engine_config, min(max_len, pages * scout.block_size))

    if everything and free_device is not None:
        page_bytes += beside_bytes
        pages = _pages_on_device(min(wanted, free_device // page_bytes), page_bytes, (free_device, own), work)
    else:
        pages = min(wanted, host_bytes // page_bytes)
    if pages == 0:
        raise _below_one_block("host_memory", host_bytes, page_bytes)
    blocks = min(blocks, pages)  # a model's own limit is just a number
    beside = pages * beside_bytes
    slots, most = _device_entries(scout, engine_config, block_bytes, blocks, beside)
    if free_device is not None and slots is not None:
        _check_device(free_device, (slots, block_bytes), (beside, own, work(pages)))
    packed = engine_config.kv_dtype != "auto"
    if slots is None and packed:
        slots, most = engine_config.max_num_seqs, 0
    elif slots is not None and slots >= wanted:
        slots = min(slots, wanted + engine_config.max_num_seqs) if packed else None
    if free_device is not None:
        _check_readable(scout, engine_config, on_host=slots is not None, everything=everything)
    least = {"compute": 0, "drop": scout.always_blocks - 1, "fetch": min(scout.budget_blocks or blocks, blocks)}
    kept = pages * page_bytes // STATES_PART // max(1, state)
    return MemoryPlan(
        block_size=scout.block_size,
        rows=engine_config.max_num_seqs,
        max_len=max_len,
        pages=pages,
        slots=slots,
        most_slots=most,
        least_slots=min(most, least[scout.ablation.on_miss]),
        lineages=max(engine_config.max_num_seqs, kept) if engine_config.prefix_cache else 0,
        least_kept=max(1, -(-state // block_bytes)),
    )


def _pages_on_device(most: int, page_bytes: int, memory: tuple[int, int], work: Callable[[int], int]) -> int:
    """Pages that a device holds beside what prompts and steps need.

    page_bytes: of a page and its digests.   memory: bytes that the device has left, and bytes of sequences' own state.
    work(pages): bytes for prompts and steps, if the longest prompt has so many pages.
    """
    free, own = memory
    pages = bisect_right(range(1, 1 + most), free - own, key=lambda count: count * page_bytes + work(count))
    if pages == 0:
        raise CapacityError(
            f"{own} bytes of each sequence's own corrections and bases, {work(1)} for prompts and steps, and "
            f"{page_bytes} of one block are more than the {free} bytes that the device has left: lower max_num_seqs, "
            "or use a smaller model"
        )
    return pages


def _check_device(free: int, slots: tuple[int, int], beside: tuple[int, int, int]) -> None:
    """Refuse more than a device has left.   slots: how many, and bytes of each.

    beside: bytes of digests, of what each sequence has of its own, and for prompts and steps.
    """
    digests, own, work = beside
    if slots[0] * slots[1] + sum(beside) > free:
        raise CapacityError(
            f"{slots[0]} slots of {slots[1]} bytes, {digests} bytes of digests, {own} of each sequence's own "
            f"corrections and bases, and {work} for prompts and steps are more than the {free} bytes that the "
            "device has left: lower device_memory, budget, max_num_seqs or max_model_len"
        )


def work_bytes(shape: ModelShape, scout: ScoutConfig, engine_config: EngineConfig, tokens: int) -> int:
    """Bytes that devices need beside the pools for prompts of up to `tokens` tokens, and steps; see `work_memory.py`.

    Ranks have as much each: the sum of all is meant.
    """
    ranks, ablation = engine_config.tensor_parallel_size, scout.ablation
    part = shape.split(ranks)
    lookahead = None if device_memory(engine_config, scout) == "all" else scout.lookahead
    reading = Reading(
        tokens,
        fitted=digest_kind(scout) == "two-stage",
        lookahead=0 if lookahead and ablation.predictor == "oracle" else lookahead,
        corrected=ablation.predictor == "calibrated",
    )
    step = step_bytes(part, scout.block_size, engine_config.max_num_seqs, tokens)
    return ranks * (prompts_bytes(part, reading, ranks) + step + LIBRARIES)


def _check_readable(scout: ScoutConfig, engine_config: EngineConfig, *, on_host: bool, everything: bool) -> None:
    """Refuse packed pages on a GPU, and a GPU that would read all keys of pages that are `on_host`."""
    if engine_config.kv_dtype != "auto" and everything:
        raise ConfigError(
            f"kv_dtype={engine_config.kv_dtype!r} is for pages in host memory, and here they are on the device: set "
            "device_memory to 'slots', or leave kv_dtype at 'auto'"
        )
    if scout.ablation.digest == "exact" and on_host:
        raise ConfigError(
            "digest='exact' is made of all keys, and here the GPU would read them from host memory: set it to "
            "'keys2', or device_memory to 'all'"
        )


def device_memory(engine_config: EngineConfig, scout: ScoutConfig) -> int | MemoryName:
    """What `EngineConfig.device_memory` means; "slots" of no budget are everything."""
    memory = engine_config.device_memory
    if memory is None:
        memory = "all" if engine_config.device == "cpu" else "slots"
    return "all" if memory == "slots" and scout.budget is None else memory


def _device_entries(
    scout: ScoutConfig, engine_config: EngineConfig, block_bytes: int, blocks: int, beside: int
) -> tuple[int | None, int]:
    """The device pool's entries (None: everything), and the slots that one sequence may have.

    beside: bytes of what else the device's memory is for.
    """
    memory = device_memory(engine_config, scout)
    if memory == "all":
        return None, blocks
    if memory == "slots":
        most = min(blocks, SLOTS_PER_BUDGET * (scout.budget_blocks or 0))
        return engine_config.max_num_seqs * (1 + most), most
    if memory - beside < block_bytes:
        raise _below_one_block("device_memory", memory, block_bytes + beside)
    return (memory - beside) // block_bytes, blocks


def digest_kind(scout: ScoutConfig) -> DigestName:
    """The digests that are kept: where every block is chosen, none are asked, and "exact" keeps nothing."""
    return "exact" if scout.budget is None else scout.ablation.digest


def digest_bytes(shape: ModelShape, scout: ScoutConfig) -> int:
    """Bytes of one block's digests and its other per-block state, over all layers and KV heads."""
    digest = block_digest_bytes(digest_kind(scout), shape, scout.block_size)
    return shape.num_layers * shape.num_kv_heads * (digest + TABLE_BYTES)


def block_digest_bytes(kind: DigestName, shape: ModelShape, block_size: int) -> int:
    """Bytes of one block's digest in one layer and KV head; 0 where the keys themselves are read."""
    if kind == "exact":
        return 0
    if kind == "minmax":
        return 8 * shape.head_dim
    return key_code_bytes(kept_dims(shape) if kind == "two-stage" else shape.head_dim, block_size)


def key_code_bytes(dims: int, block_size: int) -> int:
    """Bytes of a block's keys in 2 bits for each of `dims` dimensions, in whole words of WORD, and their bounds."""
    return 4 * (-(-dims // WORD)) * block_size + 4 * dims


def scan_dims(shape: ModelShape) -> int:
    """Main dimensions of keys by which all blocks are scanned."""
    return max(1, shape.head_dim // SCAN_PART)


def kept_dims(shape: ModelShape) -> int:
    """Main dimensions of keys that are kept, and by which candidates are judged."""
    some, of = KEPT_PART
    return min(shape.head_dim, WORD * -(-some * shape.head_dim // (of * WORD)))


def _basis_bytes(shape: ModelShape, scout: ScoutConfig) -> int:
    """Bytes of one sequence's bases of main dimensions."""
    if digest_kind(scout) != "two-stage":
        return 0
    return shape.num_layers * shape.num_kv_heads * 2 * 4 * kept_dims(shape) * shape.head_dim


def correction_dims(shape: ModelShape, scout: ScoutConfig, ranks: int = 1) -> int:
    """Dimensions of the low-rank correction of scouts, at most those of a layer's query projection.

    ranks: how many share the model; `shape` is then of one of them.
    """
    return min(scout.ablation.correction_dims, shape.hidden_size, ranks * shape.num_query_heads * shape.head_dim)


def _correction_bytes(shape: ModelShape, scout: ScoutConfig) -> int:
    """Bytes of what corrects one sequence's scouts."""
    if scout.ablation.predictor != "calibrated" or scout.lookahead == 0:
        return 0
    return shape.num_layers * 2 * shape.hidden_size * correction_dims(shape, scout) * shape.dtype_bytes


def state_bytes(shape: ModelShape, scout: ScoutConfig, engine_config: EngineConfig) -> int:
    """Bytes of one sequence's basis, and of what corrects its scouts on every rank."""
    corrections = 0 if device_memory(engine_config, scout) == "all" else _correction_bytes(shape, scout)
    return _basis_bytes(shape, scout) + corrections * engine_config.tensor_parallel_size


def _below_one_block(knob: str, size: int, block_bytes: int) -> CapacityError:
    return CapacityError(f"{knob}={size} bytes is below one block of {block_bytes} bytes: raise {knob}")
