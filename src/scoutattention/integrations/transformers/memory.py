"""Memory for the sequences of one batch, and the attention that works on it."""

from dataclasses import replace
from functools import partial

from ...attention.build import Around, Built, build, build_cache
from ...attention.predict import QueryModel
from ...cache.memory_plan import MemoryPlan, plan_memory
from ...cache.store import KVStore
from ...config import EngineConfig, ScoutConfig
from ...engine.device import free_memory, make_ops, make_transport
from ...errors import CapacityError, ConfigError
from ...hardware.host import available_memory
from ...hardware.memory_error import named_memory
from ...runtime.workers import Workers
from .model import ServedModel


class BatchMemory:
    """Pages, slots and tables for at most `plan.rows` sequences of `plan.max_len` tokens.

    built: the method, composed over them.   batch: sequences that are in it, in rows 0, 1, ...
    """

    def __init__(self, plan: MemoryPlan, built: Built) -> None:
        self.plan = plan
        self.built = built
        self.batch = 0
        self._length = 0

    @property
    def store(self) -> KVStore:
        """The cache of the running sequences."""
        return self.built.cache.store

    def holds(self, batch: int, length: int) -> bool:
        """Whether `batch` sequences fit that may become `length` tokens long."""
        return batch <= self.plan.rows and length <= self.plan.max_len

    def admit(self, batch: int, length: int) -> None:
        """Reserve what `batch` sequences need that may become `length` tokens long.

        Raises CapacityError where pages or slots are too few.
        """
        blocks, capacity = self.plan.blocks(length), self.plan.pages
        if batch * blocks > capacity:
            raise CapacityError(
                f"{batch} sequences of up to {length} tokens need {batch * blocks} blocks of {self.plan.block_size} "
                f"tokens, and the host pool has {capacity}: raise host_memory, or lower max_new_tokens or the batch"
            )
        if (running := self.plan.max_running(batch)) < batch:
            raise CapacityError(
                f"device_memory has slots for {running} sequences, and the batch has {batch}: raise device_memory, or "
                "lower the batch or budget"
            )
        self._length, quota = length, self.plan.quota(batch, length)
        for row in range(batch):
            self.batch = row + 1
            self.store.admit(row, blocks, quota)

    def check(self, batch: int, seen: int, new: int) -> None:
        """Raises ConfigError unless each sequence, `seen` tokens long, gets one more token, and has room for it."""
        if batch != self.batch or new != 1:
            raise ConfigError(
                f"{batch} x {new} tokens come after {self.batch} prompts: scout decodes one token of each at a time"
            )
        if seen + new > self._length:
            raise ConfigError(
                f"the cache has room for {self._length} tokens of a sequence, and is full: raise max_length"
            )

    def release(self) -> None:
        """Forget every sequence."""
        used, self.batch = self.batch, 0
        for row in range(used):
            self.store.release(row)


def make_memory(
    served: ServedModel,
    queries: QueryModel,
    settings: tuple[ScoutConfig, EngineConfig],
    workers: Workers,
    size: tuple[int, int],
) -> BatchMemory:
    """Memory for `size` (sequences, tokens of each).

    Raises CapacityError where the machine has too little of it.
    """
    (scout, engine), (batch, length) = settings, size
    shape = replace(served.shape, max_positions=length)
    engine = replace(engine, max_model_len=length, max_num_seqs=batch, prefix_cache=False)
    with named_memory(f"{batch} sequences of {length} tokens"):
        plan = plan_memory(shape, scout, engine, available_memory(), free_memory(served.device))
        ops = make_ops(engine, served.device, workers)
        cache = build_cache(shape, scout, plan, ops, kv_dtype=engine.kv_dtype)
        transport = partial(make_transport, ops=ops, workers=workers, scale=shape.scale)
        around = Around(transport, sink_logits=served.sink_logits)
        return BatchMemory(plan, build(shape, queries, scout, ops, cache, around))
