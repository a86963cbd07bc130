"""An `LLM` as the server's engine."""

from collections.abc import Sequence
from contextlib import suppress

from ..config import SamplingParams
from ..engine.answer import Answer
from ..engine.llm import LLM
from ..engine.prompts import PromptReader
from ..engine.stats import Stats, StepCounts
from ..errors import ConfigError
from .engine import Memory, Reading, Tier


class LocalEngine:
    """An `LLM` in this process; see `Engine`."""

    def __init__(self, llm: LLM) -> None:
        plan, shape = llm.engine.plan, llm.engine.runner.decoder.shape
        self._llm = llm
        self.tokenizer = llm.tokenizer
        self.max_len = plan.max_len
        self.capacity = min(plan.max_len, plan.pages * plan.block_size)
        self.max_running = plan.max_running(llm.engine_config.max_num_seqs)
        with suppress(ConfigError):  # not in the first request for JSON: it holds up all others, for a second or so
            llm.tokenizer.json_answer("{}")
        self._reader = PromptReader(llm.tokenizer, shape.vocab_size, self.max_len, llm.model, shape.max_positions)

    def check_ids(self, ids: Sequence[int]) -> list[int]:
        """The ids, if they are a prompt. Raises PromptError."""
        return self._reader.read([ids], chat=False)[0]

    def submit(self, ids: list[int], params: SamplingParams, *, streamed: bool) -> Answer:
        """Queue a prompt, and return at once. Raises PromptError, ConfigError and CapacityError."""
        return self._llm.submit(ids, params, streamed=streamed)

    def stats(self) -> Stats:
        """Totals since the model was loaded."""
        return self._llm.stats()

    def steps(self) -> StepCounts:
        """Steps since the model was loaded, by the tokens that they completed."""
        return self._llm.step_counts()

    def queue(self) -> tuple[int, int]:
        """Answers that are made, the one whose prompt is being read among them, and answers that wait."""
        scheduler = self._llm.engine.scheduler
        return len(scheduler.running) + (scheduler.reading is not None), len(scheduler.waiting)

    def reading(self) -> Reading | None:
        """The prompt that is being read, if one is."""
        sequence = self._llm.engine.scheduler.reading
        return None if sequence is None else Reading(sequence.id, sequence.ready.read, len(sequence.prompt_ids))

    def residency(self) -> Sequence[float]:
        """Of each layer, the part of a recent step's chosen blocks that the device held; empty where nobody looks."""
        return self._llm.engine.runner.attention.residency()

    def memory(self) -> Memory:
        """How much there is of both tiers, and how much of it is in use."""
        store = self._llm.engine.store
        pool, slots = store.pages.pool, store.slots
        pages = Tier(pool.capacity, pool.capacity - store.pages.available(), pool.capacity * pool.entry_bytes)
        if slots is None:
            return Memory(store.block_size, pages)
        room, free = slots.pool.capacity, slots.pool.available
        return Memory(store.block_size, pages, Tier(room, room - free, room * slots.pool.entry_bytes))
