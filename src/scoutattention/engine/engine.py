"""The loop: schedule, run, recall, commit."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from ..attention.build import Around, Cache, build, build_cache, needs_calibration
from ..attention.observer import Observer
from ..cache.memory_plan import MemoryPlan, plan_memory
from ..cache.store import KVStore
from ..config import EngineConfig, ScoutConfig
from ..errors import CapacityError, ConfigError, KernelError, ScoutError
from ..hardware.host import available_memory, usable_cores
from ..models.calibration import find
from ..models.decoder import Decoder
from ..runtime.ranks import gathered
from ..runtime.workers import Workers
from .device import find_device, free_memory, make_ops, make_transport, with_kernels
from .runner import Progress, Runner
from .sampler import draw, next_draws
from .scheduler import Scheduler, Sequence
from .stats import Stats

SPARE_CORES = 2
"""Cores that workers leave free beside a GPU: one looks for its calls, and the main thread waits on another."""
PROMPTS_OWN = "the prompt's own"


def make_plan(decoder: Decoder, scout: ScoutConfig, engine_config: EngineConfig, device: torch.device) -> MemoryPlan:
    """The plan for the whole model: from the host's memory, and from GPUs that each give what the poorest can."""
    own = free_memory(device)
    host, least = gathered(decoder.ranks, torch.tensor([available_memory(), own or 0])).amin(0).tolist()
    devices = None if own is None else least * decoder.ranks.size
    return plan_memory(decoder.config.shape, scout, engine_config, host, devices)


class Engine:
    """Runs requests over one model and one cache.

    calibration: what corrects the scouts, for reports: the stored file, with its hash, that each prompt's own
    correction starts from; PROMPTS_OWN where none is stored; "none" where nothing is corrected.
    """

    def __init__(
        self,
        decoder: Decoder,
        scout: ScoutConfig,
        engine_config: EngineConfig,
        observer: Observer | None = None,
        like: "Engine | None" = None,
    ) -> None:
        """`observer` looks on as the layers of decode steps attend; it changes nothing.

        like: an idle engine of the same sizes, open for as long as this one, whose plan and cache this one uses.
        """
        self.ranks = decoder.ranks
        if self.ranks.size != engine_config.tensor_parallel_size:
            raise ConfigError(
                f"tensor_parallel_size={engine_config.tensor_parallel_size} needs as many ranks, and here is "
                f"{self.ranks.size}: set it to 1, or use LLM or `scout generate`, which start the others"
            )
        cores = max(1, usable_cores() // self.ranks.size)
        torch.set_num_threads(engine_config.torch_threads or cores)
        device = find_device(engine_config.device, self.ranks.index, self.ranks.size)
        self.plan: MemoryPlan = like.plan if like else make_plan(decoder, scout, engine_config, device)
        spare = 0 if device.type == "cpu" else SPARE_CORES
        self.workers = Workers(engine_config.workers or max(1, cores - spare))
        ops = make_ops(engine_config, device, self.workers)
        decoder = with_kernels(decoder, engine_config, device, self.workers)
        kv_dtype, ranks = engine_config.kv_dtype, self.ranks
        self.cache: Cache = (
            like.cache if like else build_cache(decoder.shape, scout, self.plan, ops, kv_dtype=kv_dtype, ranks=ranks)
        )
        named = scout.calibration not in (None, "auto")  # a file that somebody names must be right, used or not
        needed = named or needs_calibration(scout, self.store)
        stored = find(decoder, scout.lookahead, scout.calibration) if needed else None
        transport = partial(make_transport, ops=ops, workers=self.workers, scale=decoder.shape.scale)
        around = Around(transport, None if stored is None else stored.corrections, observer)
        built = build(decoder.shape, decoder, scout, ops, self.cache, around)
        self.calibration = PROMPTS_OWN if stored is None else stored.name
        if built.calibrated is None:
            self.calibration = "none"
        graphs = device.type == "cuda" and engine_config.graphs and engine_config.kernels != "plain" and not observer
        self.runner = Runner(decoder, built.prompt, built.attention, graphs=graphs)
        self.scheduler = Scheduler(self.store, self.plan, engine_config.max_num_seqs)
        self.stats = Stats()

    @property
    def store(self) -> KVStore:
        """The cache of the running sequences."""
        return self.cache.store

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
            with _named_faults(f"reading a prompt of {length} tokens"):
                logits = self.runner.prefill(row, sequence.prompt_ids, progress)
        except ScoutError:
            self.scheduler.drop(row)  # the others go on
            raise
        draws = torch.tensor(next_draws([sequence.params], [sequence.generator]), device=logits.device)
        self._append([sequence], draw(logits[None], draws.T).tolist())
        self.stats = replace(
            self.stats,
            prompt_tokens=self.stats.prompt_tokens + length,
            new_tokens=self.stats.new_tokens + 1,
            prefill_s=self.stats.prefill_s + time.perf_counter() - started,
            first_token_s=self.stats.first_token_s + sequence.ttft_s,
            requests=self.stats.requests + 1,
        )
        self._measure_cache()

    def _decode(self, sequences: list[Sequence]) -> None:
        started = time.perf_counter()
        positions = [sequence.num_tokens - 1 for sequence in sequences]
        with _named_faults(f"decoding {len(sequences)} sequences"):
            _, step, tokens = self.runner.decode(
                [sequence.last_token for sequence in sequences],
                positions,
                draws=next_draws([one.params for one in sequences], [one.generator for one in sequences]),
            )
        self._append(sequences, tokens)
        self.stats = replace(
            self.stats,
            new_tokens=self.stats.new_tokens + len(sequences),
            decode_s=self.stats.decode_s + time.perf_counter() - started,
            decode_tokens=self.stats.decode_tokens + len(sequences),
            steps=self.stats.steps + step.of_all(self.ranks),
        )
        self._measure_cache()

    def _append(self, sequences: list[Sequence], tokens: list[int]) -> None:
        """Give each sequence its next token; on every rank what the first one has drawn."""
        for sequence, token in zip(sequences, gathered(self.ranks, torch.tensor(tokens))[0].tolist(), strict=True):
            sequence.append(token)

    def _measure_cache(self) -> None:
        """Keep the cache's size where it is the largest so far."""
        total, device = (size * self.ranks.size for size in self.store.cache_bytes(len(self.scheduler.running)))
        if total >= self.stats.kv_bytes_total:
            self.stats = replace(self.stats, kv_bytes_total=total, kv_bytes_device=device)


@contextmanager
def _named_faults(doing: str) -> Iterator[None]:
    """Turn what the device fails of into one sentence.   doing: what it failed in.

    Raises CapacityError where its memory was too small, KernelError where it or its driver gave up.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise CapacityError(
            f"the device's memory was too small for {doing}: lower device_memory, max_num_seqs or max_model_len"
        ) from error
    except torch.AcceleratorError as error:
        reason = str(error).partition("\n")[0]
        raise KernelError(f"the device failed {doing}: {reason}: see `scout doctor`, and start anew") from error
