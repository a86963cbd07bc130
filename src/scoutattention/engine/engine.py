"""The loop: schedule, run, recall, commit."""

import time

import torch

from ..attention.base import Attention
from ..attention.choose import MinMaxChooser
from ..attention.dense import ResidentAttention
from ..attention.predict import PlainPredictor
from ..attention.prefill import PromptAttention
from ..attention.scout import ScoutAttention
from ..cache.pages import Pages
from ..cache.slots import Slots
from ..cache.store import KVStore
from ..config import EngineConfig, ScoutConfig
from ..errors import CapacityError
from ..kernels.cpu import Workers
from ..machine import available_memory, usable_cores
from ..models.decoder import Decoder
from .memory import MemoryPlan, plan_memory
from .runner import Progress, Runner
from .sampler import sample
from .scheduler import Scheduler
from .sequence import Sequence
from .stats import Stats


def make_store(decoder: Decoder, plan: MemoryPlan, rows: int) -> KVStore:
    """The pools of a plan, for at most `rows` running sequences."""
    shape, size, blocks = decoder.shape, plan.block_size, plan.blocks(plan.max_len)
    pages = Pages(shape, size, plan.pages, rows, blocks)
    slots = None if plan.slots is None else Slots(shape, size, plan.slots, rows, blocks)
    return KVStore(pages, slots, size)


def make_attention(decoder: Decoder, scout: ScoutConfig, store: KVStore, workers: Workers) -> Attention:
    """The attention that a configuration asks for, over a store."""
    scale = decoder.shape.scale
    chooser = MinMaxChooser(scout, store, workers, scale)
    if store.slots is None:
        return ResidentAttention(store, workers, scale, None if scout.budget is None else chooser)
    return ScoutAttention(
        scout, store, workers, scale, predictor=PlainPredictor(decoder.project_query), chooser=chooser
    )


class Engine:
    """Runs requests over one model and one cache."""

    def __init__(self, decoder: Decoder, scout: ScoutConfig, machine: EngineConfig) -> None:
        torch.set_num_threads(machine.torch_threads or usable_cores())
        self.plan = plan_memory(decoder.shape, scout, machine, available_memory())
        self.workers = Workers(machine.workers)
        self.store = make_store(decoder, self.plan, machine.max_num_seqs)
        attention = make_attention(decoder, scout, self.store, self.workers)
        self.runner = Runner(decoder, PromptAttention(scout, self.store, decoder.shape.scale), attention)
        self.scheduler = Scheduler(self.store, self.plan, machine.max_num_seqs)
        self.stats = Stats()

    @property
    def busy(self) -> bool:
        """Whether any sequence is waiting or running."""
        return bool(self.scheduler.waiting or self.scheduler.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a request. Raises CapacityError when even an empty host pool could not hold it."""
        blocks, capacity = self.plan.blocks(sequence.limit), self.plan.pages
        if blocks > capacity:
            prompt = len(sequence.prompt_ids)
            raise CapacityError(
                f"{prompt} prompt tokens and up to {sequence.limit - prompt} new ones need {blocks} blocks of "
                f"{self.plan.block_size} tokens, and the host pool has {capacity}: "
                "raise host_memory, or lower max_tokens"
            )
        self.scheduler.add(sequence)

    def step(self, progress: Progress | None = None) -> list[Sequence]:
        """Admit what fits, run one decode step, and return the sequences that got a token."""
        advanced = []
        while (sequence := self.scheduler.admit()) is not None:
            self._prefill(sequence, progress)
            advanced.append(sequence)
        self.scheduler.retire()
        if not advanced and self.scheduler.running:
            advanced = list(self.scheduler.running)
            self._decode(advanced)
            self.scheduler.retire()
        return advanced

    def abort(self) -> None:
        """Forget every request, as after an interruption."""
        self.scheduler.clear()

    def close(self) -> None:
        """Stop the worker threads."""
        self.workers.close()

    def _prefill(self, sequence: Sequence, progress: Progress | None) -> None:
        started = time.perf_counter()
        logits = self.runner.prefill(len(self.scheduler.running) - 1, sequence.prompt_ids, progress)
        sequence.append(sample(logits, sequence.params, sequence.generator))
        elapsed = time.perf_counter() - started
        self.stats = self.stats.after_prompt(len(sequence.prompt_ids), elapsed, sequence.ttft_s)
        self._measure_cache()

    def _decode(self, sequences: list[Sequence]) -> None:
        started = time.perf_counter()
        positions = [sequence.num_tokens - 1 for sequence in sequences]
        logits, step = self.runner.decode([sequence.last_token for sequence in sequences], positions)
        for sequence, row in zip(sequences, logits, strict=True):
            sequence.append(sample(row, sequence.params, sequence.generator))
        self.stats = self.stats.after_step(len(sequences), time.perf_counter() - started, step)
        self._measure_cache()

    def _measure_cache(self) -> None:
        self.stats = self.stats.with_cache(*self.store.cache_bytes(len(self.scheduler.running)))
