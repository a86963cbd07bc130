"""The loop: schedule, run, recall, commit."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..attention.base import Attention
from ..attention.choose import TopChooser
from ..attention.dense import ResidentAttention
from ..attention.far import FarWork
from ..attention.observer import Observer
from ..attention.predict import CalibratedPredictor, PlainPredictor, Predictor
from ..attention.prompt.prefill import PromptAttention
from ..attention.prompt.trial import Rehearsal
from ..attention.scout import ScoutAttention
from ..cache.digests.kinds import make_digests
from ..cache.memory_plan import MemoryPlan, correction_rank, digest_kind, plan_memory
from ..cache.pages import Pages
from ..cache.pool import make_pages
from ..cache.slots import Slots
from ..cache.store import KVStore
from ..config import EngineConfig, ScoutConfig
from ..errors import CapacityError, ConfigError, ScoutError
from ..hardware.host import available_memory, usable_cores
from ..kernels.ops import Ops
from ..models.calibration import Calibration, find
from ..models.decoder import Decoder
from ..runtime.memory import CPU
from ..runtime.ranks import gathered
from ..runtime.workers import Workers
from .device import faults_named, find_device, free_memory, make_far_work, make_ops, with_kernels
from .runner import Progress, Runner
from .sampler import draw
from .scheduler import Scheduler
from .sequence import Sequence
from .stats import Stats

SPARE_CORES = 2
"""Cores that workers leave free beside a GPU: its host functions run on one, and the main thread waits on another."""


def make_plan(decoder: Decoder, scout: ScoutConfig, machine: EngineConfig, device: torch.device) -> MemoryPlan:
    """The plan for the whole model: from the host's memory, and from GPUs that each give what the poorest can."""
    own = free_memory(device)
    host, least = gathered(decoder.ranks, torch.tensor([available_memory(), own or 0])).amin(0).tolist()
    devices = None if own is None else least * decoder.ranks.size
    return plan_memory(decoder.config.shape, scout, machine, host, devices)


def make_store(decoder: Decoder, scout: ScoutConfig, machine: EngineConfig, plan: MemoryPlan, ops: Ops) -> KVStore:
    """The pools of a plan."""
    shape, size, blocks, rows = decoder.shape, plan.block_size, plan.blocks(plan.max_len), machine.max_num_seqs
    pool = make_pages(shape, size, plan.pages, machine.kv_dtype, ops.device if plan.slots is None else CPU)
    if ops.device.type == "cuda" and plan.slots is not None:
        pool.pin()
    pages = Pages(
        pool,
        make_digests(digest_kind(scout), shape, pool, ops, survivors=2 * (scout.budget_blocks or blocks)),
        rows,
        blocks,
        ops,
    )
    slots = None
    if plan.slots is not None:
        slots = Slots(shape, size, plan.slots, rows, 0 if plan.resident else blocks, device=ops.device)
    return KVStore(pages, slots, size, ops, resident=plan.resident, ranks=decoder.ranks)


def make_attention(
    scout: ScoutConfig,
    store: KVStore,
    ops: Ops,
    far: Callable[[], FarWork],
    scale: float,
    *,
    predictor: Predictor,
    observer: Observer | None,
) -> Attention:
    """The attention that a configuration asks for, over a store.   far: makes what hands absent blocks to the CPU."""
    chooser = TopChooser(scout, store, ops)
    if store.resident:
        takes_all = scout.budget is None and store.slots is None
        return ResidentAttention(store, ops, scale, None if takes_all else chooser)
    return ScoutAttention(scout, store, ops, far(), scale, predictor=predictor, chooser=chooser, observer=observer)


PROMPTS_OWN = "the prompt's own"


def make_calibrated(
    decoder: Decoder, scout: ScoutConfig, store: KVStore, stored: Calibration | None
) -> CalibratedPredictor | None:
    """A calibrated predictor whose corrections of rows, none so far, follow the store's; None where none is needed."""
    if not needs_calibration(scout, store):
        return None
    shape, rows = decoder.config.shape, len(store.closed)
    rank = correction_rank(shape, scout)
    size, like = (shape.num_layers, rows), decoder.weights.embedding
    left = like.new_zeros(*size, rank, shape.hidden_size).mT
    right = like.new_zeros(*size, shape.hidden_size, rank)
    corrections = None if stored is None else stored.corrections.to(like.dtype, like.device)
    predictor = CalibratedPredictor(decoder, (left, right), corrections, decoder.few_rows.linear)
    for state in (left, right, predictor.uses_stored):
        store.follow(state, fresh=0)
    return predictor


def needs_calibration(scout: ScoutConfig, store: KVStore) -> bool:
    """Whether scouts are made at all, and corrected."""
    return scout.predictor == "calibrated" and scout.lookahead > 0 and not store.resident


class Engine:
    """Runs requests over one model and one cache.

    calibration: what corrects the scouts, for reports: the stored file, with its hash, that each prompt's own
    correction starts from; PROMPTS_OWN where none is stored; "none" where nothing is corrected.
    """

    def __init__(
        self,
        decoder: Decoder,
        scout: ScoutConfig,
        machine: EngineConfig,
        observer: Observer | None = None,
        like: "Engine | None" = None,
    ) -> None:
        """`observer` looks on as the layers of decode steps attend; it changes nothing.

        like: an idle engine of the same sizes, open for as long as this one, whose plan and store this one uses.
        """
        self.ranks = decoder.ranks
        if self.ranks.size != machine.tensor_parallel_size:
            raise ConfigError(
                f"tensor_parallel_size={machine.tensor_parallel_size} needs as many ranks, and here is "
                f"{self.ranks.size}: set it to 1, or use LLM or `scout generate`, which start the others"
            )
        cores = max(1, usable_cores() // self.ranks.size)
        torch.set_num_threads(machine.torch_threads or cores)
        device = find_device(machine.device, self.ranks.index, self.ranks.size)
        self.plan: MemoryPlan = like.plan if like else make_plan(decoder, scout, machine, device)
        self.workers = Workers(machine.workers or (cores if device.type == "cpu" else max(1, cores - SPARE_CORES)))
        ops = make_ops(machine, device, self.workers)
        decoder = with_kernels(decoder, machine, device, self.workers)
        self.store: KVStore = like.store if like else make_store(decoder, scout, machine, self.plan, ops)
        scale = decoder.shape.scale
        stored = find(decoder, scout.lookahead, scout.calibration) if needs_calibration(scout, self.store) else None
        calibrated = make_calibrated(decoder, scout, self.store, stored)
        predictor = calibrated or PlainPredictor(decoder)
        far = partial(make_far_work, self.store, ops, self.workers, scale, correct=scout.correct_far)
        attention = make_attention(scout, self.store, ops, far, scale, predictor=predictor, observer=observer)
        rehearsal = Rehearsal(scout, decoder.shape.num_layers, decoder, calibrated, self.ranks)
        prompt_attention = PromptAttention(scout, self.store, scale, rehearsal)
        graphs = device.type == "cuda" and machine.graphs and machine.kernels != "plain" and observer is None
        self.runner = Runner(decoder, prompt_attention, attention, graph_rows=machine.max_num_seqs if graphs else 0)
        self.scheduler = Scheduler(self.store, self.plan, machine.max_num_seqs)
        self.calibration = "none" if calibrated is None else PROMPTS_OWN if stored is None else stored.name
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
        """Stop the worker threads, and let go of captured steps."""
        self.runner.close()
        self.workers.close()

    def _prefill(self, sequence: Sequence, progress: Progress | None) -> None:
        started = time.perf_counter()
        row, length = len(self.scheduler.running) - 1, len(sequence.prompt_ids)
        try:
            with faults_named(f"reading a prompt of {length} tokens"):
                logits = self.runner.prefill(row, sequence.prompt_ids, progress)
        except ScoutError:
            self.scheduler.drop(row)  # the others go on
            raise
        self._draw([sequence], logits[None])
        elapsed = time.perf_counter() - started
        self.stats = self.stats.after_prompt(len(sequence.prompt_ids), elapsed, sequence.ttft_s)
        self._measure_cache()

    def _decode(self, sequences: list[Sequence]) -> None:
        started = time.perf_counter()
        positions = [sequence.num_tokens - 1 for sequence in sequences]
        with faults_named(f"decoding {len(sequences)} sequences"):
            logits, step = self.runner.decode([sequence.last_token for sequence in sequences], positions)
        self._draw(sequences, logits)
        self.stats = self.stats.after_step(len(sequences), time.perf_counter() - started, step.of_all(self.ranks))
        self._measure_cache()

    def _draw(self, sequences: list[Sequence], logits: Tensor) -> None:
        """Give each sequence its next token, from logits [B, vocab]; on every rank what the first one draws."""
        drawn = draw(logits, [one.params for one in sequences], [one.generator for one in sequences])
        for sequence, token in zip(sequences, gathered(self.ranks, torch.tensor(drawn))[0].tolist(), strict=True):
            sequence.append(token)

    def _measure_cache(self) -> None:
        total, device = self.store.cache_bytes(len(self.scheduler.running))
        self.stats = self.stats.with_cache(total * self.ranks.size, device * self.ranks.size)
