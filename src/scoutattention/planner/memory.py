"""What a design needs of both memories, and the largest batch that fits."""

from typing import NamedTuple

from ..cache.memory_plan import digest_bytes, state_bytes, work_bytes
from ..config import EngineConfig
from .computers import GIB, Computer
from .work import Design, Work, weight_bytes

DRIVER = 600 << 20
"""Bytes of a GPU that a driver's context, and kernels that are loaded take, about."""
PROGRAM, KEPT = 350 << 20, 2 * GIB
"""Bytes of the host that the program takes, about, and the least that is left to the system; see `KEPT_PART`."""
KEPT_PART = 10
"""One in so many bytes of the host is left to the system, if that is more."""
MOST_BATCH = 512


class Needs(NamedTuple):
    """Bytes of the device and of the host.   cache: of the host's, what its pages take (`host_memory`)."""

    device: int
    host: int
    cache: int


class Room(NamedTuple):
    """Bytes that a computer has for a model: of the device, 0 where it has none of its own, and of the host."""

    device: int
    host: int


def room_of(computer: Computer) -> Room:
    """What the driver and the system leave."""
    host = computer.host.memory - max(KEPT, computer.host.memory // KEPT_PART)
    return Room(0 if computer.card is None else computer.card.memory - DRIVER, host)


def settings_of(design: Design, work: Work, computer: Computer) -> EngineConfig:
    """The engine's settings of a design, for so many sequences of so many tokens."""
    everything = design == "full" or computer.card is None
    return EngineConfig(
        device="cpu" if computer.card is None else "cuda",
        device_memory="all" if everything else "slots",
        max_num_seqs=work.batch,
        max_model_len=work.context,
        kv_dtype="auto" if everything and computer.card is not None else work.kv_dtype,
    )


def needs_of(design: Design, work: Work, computer: Computer) -> Needs:
    """What a batch needs, as `cache/memory_plan.py` will size it."""
    shape, scout = work.shape, work.scout.changed(budget=None) if design == "full" else work.scout
    config = settings_of(design, work, computer)
    blocks = -(-work.context // scout.block_size)
    pages = work.batch * blocks
    weights = weight_bytes(work, computer)
    digests, own = pages * digest_bytes(shape, scout), work.batch * state_bytes(shape, scout, config)
    cache = pages * shape.page_bytes(scout.block_size, config.kv_dtype)
    if computer.card is None:
        return Needs(0, weights + PROGRAM + cache + digests + own, cache)
    beside = digests + own + work_bytes(shape, scout, config, work.context)
    if design == "full":
        return Needs(weights + cache + beside, PROGRAM, 0)
    slots = work.batch * (1 + min(blocks, round(work.slots * (scout.budget_blocks or 0))))
    return Needs(weights + slots * shape.block_bytes(scout.block_size) + beside, PROGRAM + cache, cache)


def missing(design: Design, work: Work, computer: Computer) -> Room:
    """Bytes by which a batch misses: of the device, and of the host; zeros where it fits."""
    needs, room = needs_of(design, work, computer), room_of(computer)
    return Room(max(0, needs.device - room.device), max(0, needs.host - room.host))


def largest_batch(design: Design, work: Work, computer: Computer) -> int:
    """The most sequences that fit, at most `MOST_BATCH`; 0 where not even one does."""
    low, high = 0, MOST_BATCH + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = not any(missing(design, work._replace(batch=middle), computer))
        low, high = (middle, high) if fits else (low, middle)
    return low
