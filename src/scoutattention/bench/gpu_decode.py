"""Decoding on a device with this engine's full attention, its rivals and itself: all are settings of one engine."""

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ..attention.base import StepStats
from ..config import EngineConfig, Memory, ScoutConfig
from ..engine.engine import Engine
from ..errors import CapacityError
from ..models.decoder import Decoder
from .gpu_cache import Prompts
from .gpu_idle import busy_seconds

TRACED = 3
"""Steps that follow the timed ones, to see when the device works."""

Watch = Callable[[str], object]
"""watch(what is being done)"""


class Rival(NamedTuple):
    """A design of the field, as settings."""

    name: str
    scout: ScoutConfig
    device_memory: Memory = None


def rivals(base: ScoutConfig) -> tuple[Rival, ...]:
    """Full attention on the device; blocks fetched or computed by the CPU when a layer asks; and asked for ahead."""
    plain = replace(base, predictor="plain", calibration=None)
    return (
        Rival("full", replace(plain, budget=None), "all"),
        Rival("fetch", replace(plain, on_miss="fetch", lookahead=0)),
        Rival("fetch-ahead", replace(plain, on_miss="fetch")),
        Rival("compute", replace(plain, lookahead=0, far_query="true")),
        Rival("scout-plain", plain),
        Rival("scout", replace(plain, predictor="calibrated")),
    )


@dataclass(frozen=True)
class Plan:
    """What to run.

    contexts, batches: every pair is a case; once a case of an engine does not fit, its larger batches are left out.
    warm_up, steps: of each engine in each case, not counted and counted.   machine: with the host's memory.
    """

    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    machine: EngineConfig
    warm_up: int = 16
    steps: int = 32

    @property
    def more(self) -> int:
        """Tokens that a sequence gets."""
        return self.warm_up + self.steps + TRACED


class Result(NamedTuple):
    """One engine in one case.

    ms_per_step: median of the counted steps.   device_idle_share: of that time, when no kernel ran; None without a GPU.
    hidden_ms, unhidden_ms, link_bytes: means over the steps: the CPU's attention that ran behind other work, and that
        was waited for; what was copied from host pages to device slots.
    share: of the chosen blocks, those that the device did not hold.
    """

    engine: str
    context: int
    batch: int
    ms_per_step: float
    tokens_per_s: float
    device_idle_share: float | None
    hidden_ms: float
    unhidden_ms: float
    link_bytes: float
    share: float


class LeftOut(NamedTuple):
    """An engine that did not run a case, or larger batches, and why."""

    engine: str
    context: int
    batch: int
    why: str


class Measured(NamedTuple):
    """Everything that ran, and what did not."""

    results: list[Result]
    left_out: list[LeftOut]


@dataclass(frozen=True)
class Bench:
    """What every case needs.   until: when to start no more cases, by `time.perf_counter`."""

    decoder: Decoder
    prompts: Prompts
    plan: Plan
    until: float
    watch: Watch


def measure(bench: Bench, engines: tuple[Rival, ...]) -> Measured:
    """All cases, the smallest batch of every context first."""
    results: list[Result] = []
    left_out: list[LeftOut] = []
    pace: dict[str, float] = {}
    for batch, context in itertools.product(bench.plan.batches, bench.plan.contexts):
        ended = {left.engine for left in left_out if left.context == context}
        running = [rival for rival in engines if rival.name not in ended]
        for _, sharing in itertools.groupby(running, key=lambda rival: rival.device_memory):
            for outcome in run_together(bench, list(sharing), (context, batch), pace):
                if isinstance(outcome, Result):
                    results.append(outcome)
                else:
                    left_out.append(outcome)
            free()
    return Measured(results, left_out)


def run_together(
    bench: Bench, sharing: list[Rival], case: tuple[int, int], pace: dict[str, float]
) -> Iterator[Result | LeftOut]:
    """Engines of the same sizes, one after the other; they share one cache, which takes long to fill.

    case: context and batch.   pace: of each engine, the seconds it took lately for a token of a case's prompts.
    """
    tokens = case[0] * case[1]
    with ExitStack() as stack:
        first: Engine | None = None
        for rival in sharing:
            started = time.perf_counter()
            if started + pace.get(rival.name, 0.0) * tokens > bench.until:
                yield LeftOut(rival.name, *case, "time: raise --minutes")
                continue
            bench.watch(f"{rival.name}: {case[1]} x {case[0]} tokens")
            try:
                engine = stack.enter_context(closing(make_engine(bench, rival, case, first)))
                yield run(bench, rival, case, engine)
            except (CapacityError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                yield LeftOut(rival.name, *case, f"memory: {str(error).splitlines()[0]}")
            else:
                first = first or engine
                pace[rival.name] = (time.perf_counter() - started) / tokens


def make_engine(bench: Bench, rival: Rival, case: tuple[int, int], like: Engine | None) -> Engine:
    """An engine for a case, its cache filled. Raises CapacityError where the case does not fit."""
    context, batch = case
    longest = context + bench.plan.more
    machine = replace(bench.plan.machine, device_memory=rival.device_memory, max_model_len=longest, max_num_seqs=batch)
    engine = Engine(bench.decoder, rival.scout, machine, like=like)
    plan, needed = engine.plan, batch * engine.plan.blocks(longest)
    if plan.pages < needed or plan.lanes(batch) < batch:
        engine.close()
        raise CapacityError(
            f"{batch} sequences of {longest} tokens need {needed} blocks of {plan.block_size} tokens, and "
            f"{plan.pages} fit: raise host_memory"
        )
    if like is None:
        bench.prompts.fill(engine.store)
    return engine


def run(bench: Bench, rival: Rival, case: tuple[int, int], engine: Engine) -> Result:
    """Time an engine's steps."""
    (context, batch), plan, store = case, bench.plan, engine.store
    blocks = engine.plan.blocks(engine.plan.max_len)
    for row in range(batch):
        store.admit(row, blocks, engine.plan.quota(batch, engine.plan.max_len))
    try:
        steps = Steps(engine, bench.prompts.place(engine, rival.scout, context, batch), context)
        for _ in range(plan.warm_up):
            steps.take()
        timed = [steps.take() for _ in range(plan.steps)]
        busy = busy_seconds(steps.take, TRACED) if bench.decoder.device.type == "cuda" else None
    finally:
        for row in range(batch):
            store.release(row)
    total, seconds = sum((stats for _, stats in timed), StepStats()), statistics.median(s for s, _ in timed)
    return Result(
        engine=rival.name,
        context=context,
        batch=batch,
        ms_per_step=seconds * 1e3,
        tokens_per_s=batch / seconds,
        device_idle_share=None if busy is None else max(0.0, 1 - busy / seconds),
        hidden_ms=total.hidden_s / plan.steps * 1e3,
        unhidden_ms=total.unhidden_s / plan.steps * 1e3,
        link_bytes=total.recalled_bytes / plan.steps,
        share=total.far_blocks / max(1, total.chosen_blocks),
    )


class Steps:
    """Greedy decoding of sequences that were placed in an engine."""

    def __init__(self, engine: Engine, tokens: list[int], context: int) -> None:
        """`tokens`: of each sequence, the next to be fed."""
        self._runner = engine.runner
        self._tokens = tokens
        self._position = context

    def take(self) -> tuple[float, StepStats]:
        """One step; its seconds, and what it did."""
        started = time.perf_counter()
        logits, stats = self._runner.decode(self._tokens, [self._position] * len(self._tokens))
        self._tokens = logits.argmax(-1).tolist()
        self._position += 1
        return time.perf_counter() - started, stats


def is_out_of_memory(error: Exception) -> bool:
    """Whether a pool, the machine or the device was too small, by what PyTorch and the driver call it."""
    return isinstance(error, CapacityError) or "memory" in str(error).lower()


def free() -> None:
    """Give back what the engines of a case held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
