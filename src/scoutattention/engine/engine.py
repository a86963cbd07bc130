"""The loop: schedule, run, recall, commit."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..attention.build import Around, Cache, build, build_cache, needs_calibration
from ..attention.observer import Observer
from ..cache.memory_plan import MemoryPlan, plan_memory
from ..cache.store import KVStore
from ..config import EngineConfig, ScoutConfig
from ..errors import CapacityError, ConfigError, KernelError, ScoutError
from ..hardware.host import available_memory, usable_cores
from ..hardware.memory_error import memory_error
from ..models.calibration import find
from ..models.decoder import Decoder
from ..runtime.ranks import gathered
from .device import find_device, free_memory, make_ops, make_transport, make_workers, with_kernels
from .prefix.cache import make_prefix_cache
from .runner import Reading, Runner
from .sampler import NOT_FINITE, Seen, not_finite, top_logprobs
from .scheduler import Scheduler, Sequence
from .stats import Stats

PROMPTS_OWN = "the prompt's own"
READING_S = 0.2
"""Seconds that prompts are read for before the engine looks for requests that come and go."""
RECENT_STEPS = 16
"""Beside streamed answers, a turn of reading is half as long as the fastest of so many decode steps that came last."""
MOST_READING = 10
"""Prompts that came later are read for so many times as long as a decode step takes, and then one is due."""


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

        like: an idle engine of the same sizes, open for as long as this one, whose plan and cache this one uses. It
            forgets the prompts that it has kept, and this one keeps none.
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
        self.plan: MemoryPlan = (
            replace(like.plan, lineages=0) if like else make_plan(decoder, scout, engine_config, device)
        )
        self.workers = make_workers(engine_config, cores, on_gpu=device.type != "cpu")
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
        self.calibration = "none" if built.calibrated is None else PROMPTS_OWN if stored is None else stored.name
        graphs = device.type == "cuda" and engine_config.graphs and engine_config.kernels != "plain" and not observer
        seen = Seen(self.store, decoder.shape.vocab_size)
        self.runner = Runner(decoder, built.prompt, built.attention, seen, graphs=graphs)
        self._prefixes = make_prefix_cache(self.cache, self.plan, decoder, scout, engine_config, self.calibration)
        self.scheduler = Scheduler(self.store, self.plan, engine_config.max_num_seqs, self._prefixes.find)
        self._reading: tuple[Sequence, Reading] | None = None
        self._steps = deque([(0.0, 0.0)], RECENT_STEPS)  # the last ones: seconds that each took, and when it ended
        self.stats = Stats(device=device.type)

    @property
    def store(self) -> KVStore:
        """The cache of the running sequences."""
        return self.cache.store

    @property
    def busy(self) -> bool:
        """Whether any sequence has not ended."""
        return bool(self.scheduler.sequences)

    def check(self, sequence: Sequence) -> None:
        """Raises CapacityError when even an empty host pool could not hold a request."""
        blocks, capacity = self.plan.blocks(sequence.limit), self.plan.pages
        if blocks > capacity:
            prompt = len(sequence.prompt_ids)
            raise CapacityError(
                f"{prompt} prompt tokens and up to {sequence.limit - prompt} new ones need {blocks} blocks of "
                f"{self.plan.block_size} tokens, and the host pool has {capacity}: "
                "raise host_memory, or lower max_tokens"
            )

    def add(self, sequence: Sequence) -> None:
        """Queue a request. Raises what `check` does."""
        self.check(sequence)
        self.scheduler.add(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Forget a request, and free what it holds, between two steps; of one that has ended there is nothing left."""
        self.scheduler.forget(sequence)
        if self._reading is not None and self._reading[0] is sequence:
            self._reading = None

    def step(self) -> list[Sequence]:
        """Run a decode step, or read prompts for a while, and return the sequences of which there is news.

        Prompts come first, because a larger batch decodes more tokens in a step; see MOST_READING. While somebody reads
        an answer token by token, reading and decode steps take turns; see RECENT_STEPS.
        An error of one sequence ends that one; an error of a decode step ends all that were in it. Any other exception
        costs nobody a token: the sequences are read anew. With several ranks, every error is raised.
        """
        streamed = any(sequence.reader.streamed for sequence in self.scheduler.running)
        news = self._decode() if streamed else []
        news += self._read(min(self._steps)[0] / 2 if streamed else READING_S)
        if not news or (not streamed and self._agreed(self._step_is_due(news[-1]))):
            news += self._decode()
        return news

    def close(self) -> None:
        """Stop the worker threads, and let go of captured steps."""
        self.runner.close()
        self.workers.close()
        self._prefixes.close()

    def _read(self, seconds: float) -> list[Sequence]:
        """Read prompts, piece by piece, for about so long, one piece at least; returns those that were read."""
        news: dict[Sequence, None] = {}
        started, spent, longest = time.perf_counter(), 0.0, 0.0
        while self._agreed(spent + longest <= seconds or not news):
            sequence = self.scheduler.reading or self.scheduler.admit()
            if sequence is None:
                break
            news[sequence] = None
            with self._ending_on_error([sequence], f"reading a prompt of {sequence.num_tokens} tokens"):
                self.read_piece(sequence)
            self.scheduler.retire()
            before, spent = spent, time.perf_counter() - started
            longest = max(longest, spent - before)
        return list(news)

    def read_piece(self, sequence: Sequence) -> None:
        """Read one piece of a prompt; after the last one, draw the first token of the answer."""
        started = time.perf_counter()
        if self._reading is None or self._reading[0] is not sequence:
            tokens = sequence.prompt_ids + sequence.output_ids
            self._reading = sequence, self.runner.read(self.scheduler.reading_row, tokens, scores=sequence.scores())
        try:
            sequence.note_read(next(self._reading[1]))
            self.runner.settle()
        except StopIteration as end:
            self._reading = None
            self._begin_answer(sequence, end.value)
        self.stats = replace(self.stats, prefill_s=self.stats.prefill_s + time.perf_counter() - started)

    def _begin_answer(self, sequence: Sequence, logits: Tensor) -> None:
        """Draw the token after a prompt that was read, from its logits, float32 [vocab]."""
        row, one, new = self.scheduler.run(), sequence.draw(), not sequence.output_ids
        if one.penalised:
            self.runner.seen.begin(row, sequence.prompt_ids, sequence.output_ids, sequence.steering)
        read, made = sequence.num_tokens, len(sequence.output_ids)
        self._append([sequence], [self.runner.first(row, logits, one)], logits[None])
        if sequence.ready.error is None:  # else keys may not be finite
            self._prefixes.keep(row, sequence, read)
        self.stats = replace(
            self.stats,
            prompt_tokens=self.stats.prompt_tokens + read,
            cached_tokens=self.stats.cached_tokens + sequence.prefix.tokens,
            new_tokens=self.stats.new_tokens + len(sequence.output_ids) - made,
            first_token_s=self.stats.first_token_s + new * sequence.ttft_s,
            requests=self.stats.requests + new,
        )
        self._measure_cache()

    def _decode(self) -> list[Sequence]:
        """Run one decode step of all that run, and return them."""
        sequences, started = list(self.scheduler.running), time.perf_counter()
        if not sequences:
            return []
        with self._ending_on_error(sequences, f"decoding {len(sequences)} sequences"):
            for row, one in enumerate(sequences):
                self.runner.seen.go_on(row, one.steering, len(one.output_ids))
            fed, draws = [one.last_token for one in sequences], [one.draw() for one in sequences]
            logits, step, tokens = self.runner.decode(fed, [one.num_tokens - 1 for one in sequences], draws=draws)
            self._append(sequences, tokens, logits)
            ended = time.perf_counter()
            self._steps.append((ended - started, ended))
            self.stats = replace(
                self.stats,
                new_tokens=self.stats.new_tokens + len(sequences),
                decode_s=self.stats.decode_s + ended - started,
                decode_tokens=self.stats.decode_tokens + len(sequences),
                steps=self.stats.steps + step.of_all(self.ranks),
            )
            self._measure_cache()
        self.scheduler.retire()
        return sequences

    def _step_is_due(self, read: Sequence) -> bool:
        """Whether a running answer has waited long enough for prompts that came later; `read`: the last of them."""
        took, ended = self._steps[-1]
        return self.scheduler.came_later(read) and time.perf_counter() - ended > MOST_READING * took

    def _agreed(self, wish: bool) -> bool:
        """The wish of rank 0, for all ranks: wishes depend on clocks, which differ."""
        return bool(gathered(self.ranks, torch.tensor([wish]))[0]) if self.ranks.size > 1 else wish

    @contextmanager
    def _ending_on_error(self, sequences: list[Sequence], doing: str) -> Iterator[None]:
        """An error inside ends these sequences. After any other exception they are put back, to be prefilled again."""
        with ExitStack() as broken_off:
            for sequence in sequences:  # the first is the last to be put back, and so the first to be read
                broken_off.callback(self.scheduler.put_back, sequence)
            try:
                with _named_faults(doing):
                    yield
            except ScoutError as error:
                if self.ranks.size > 1:
                    raise
                for sequence in sequences:
                    sequence.fail(error)
            broken_off.pop_all()

    def _append(self, sequences: list[Sequence], tokens: list[int], logits: Tensor) -> None:
        """Give each sequence its next token; on every rank what the first one has drawn."""
        tokens = gathered(self.ranks, torch.tensor(tokens))[0].tolist()
        asked = [place for place, one in enumerate(sequences) if one.params.logprobs is not None]
        found: dict[int, dict[int, float]] = {}
        if asked:
            counts = [sequences[place].params.logprobs or 0 for place in asked]
            chosen = [max(0, tokens[place]) for place in asked]
            found = dict(zip(asked, top_logprobs(logits[asked], chosen, counts), strict=True))
        for place, (sequence, token) in enumerate(zip(sequences, tokens, strict=True)):
            if token == NOT_FINITE:
                sequence.fail(not_finite(self.runner.decoder.shape.dtype))
                continue
            try:
                sequence.append(token, found.get(place))
            except ScoutError as error:
                sequence.fail(error)

    def _measure_cache(self) -> None:
        """Update the largest size of the cache so far."""
        total, device = (size * self.ranks.size for size in self.store.cache_bytes(len(self.scheduler.running)))
        if total >= self.stats.kv_bytes_total:
            self.stats = replace(self.stats, kv_bytes_total=total, kv_bytes_device=device)


@contextmanager
def _named_faults(doing: str) -> Iterator[None]:
    """Turn errors of memory, device and driver into one sentence.   doing: the work inside, for the message.

    Raises CapacityError if memory was too small, KernelError if the device or its driver failed.
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
    except (MemoryError, OSError, RuntimeError) as error:
        if short := memory_error(error, doing):
            raise short from error
        raise
