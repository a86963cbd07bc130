"""Decoding on a device with this engine's full attention, its rivals and itself: one engine, set differently."""

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

import torch

from ..attention.base import StepStats
from ..config import EngineConfig, ScoutConfig
from ..engine.device import find_device, free_memory, make_ops
from ..engine.engine import Engine
from ..engine.memory import plan_memory
from ..errors import CapacityError
from ..models.decoder import Decoder
from ..shape import ModelShape
from .fetch_all import FetchAllAttention
from .gpu_cache import Prompts
from .gpu_idle import busy_seconds
from .gpu_plan import TRACED, LeftOut, Measured, Plan, Result, Rival

Watch = Callable[[str], object]
"""watch(what is being done)"""


@dataclass(frozen=True)
class Bench:
    """What every case needs.   until: when to start no more cases, by `time.perf_counter`."""

    decoder: Decoder
    prompts: Prompts
    plan: Plan
    until: float
    watch: Watch


def measure(bench: Bench, engines: Sequence[Rival]) -> Measured:
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
            free()  # of engines that failed, too
            started = time.perf_counter()
            if started + pace.get(rival.name, 0.0) * tokens > bench.until:
                yield LeftOut(rival.name, *case, "time: raise --minutes")
                continue
            bench.watch(f"{rival.name}: {case[1]} x {case[0]} tokens")
            try:
                engine = make_engine(bench, rival, case, first)
                with ExitStack() as own:
                    (own if first else stack).callback(engine.close)
                    first = first or engine
                    yield run(bench, rival, case, engine)
            except (CapacityError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                yield LeftOut(rival.name, *case, f"memory: {str(error).splitlines()[0]}")
            else:
                pace[rival.name] = (time.perf_counter() - started) / tokens


def make_engine(bench: Bench, rival: Rival, case: tuple[int, int], like: Engine | None) -> Engine:
    """An engine for a case, its cache filled. Raises CapacityError where the case does not fit."""
    context, batch = case
    longest = context + bench.plan.more
    machine = replace(bench.plan.machine, device_memory=rival.device_memory, max_model_len=longest, max_num_seqs=batch)
    if like is None:
        check_room(bench.decoder.shape, rival.scout, machine)
    with ExitStack() as stack:
        engine = stack.enter_context(closing(Engine(bench.decoder, rival.scout, machine, like=like)))
        if rival.fetch_all:
            ops = make_ops(machine, engine.store.device, engine.workers)
            engine.runner.attention = FetchAllAttention(engine.store, ops, bench.decoder.shape.scale)
        if like is None:
            bench.prompts.fill(engine.store)
        stack.pop_all()
    return engine


def check_room(shape: ModelShape, scout: ScoutConfig, machine: EngineConfig) -> None:
    """Raises CapacityError where the sequences do not all fit, before any memory is taken."""
    assert machine.host_memory is not None
    assert machine.max_model_len is not None
    plan = plan_memory(shape, scout, machine, machine.host_memory, free_memory(find_device(machine.device)))
    longest, needed = machine.max_model_len, machine.max_num_seqs * plan.blocks(machine.max_model_len)
    if plan.pages < needed or plan.lanes(machine.max_num_seqs) < machine.max_num_seqs:
        raise CapacityError(
            f"{machine.max_num_seqs} sequences of {longest} tokens need {needed} blocks of {plan.block_size} tokens, "
            f"and {plan.pages} fit: raise host_memory"
        )


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
    mean = statistics.fmean(s for s, _ in timed)
    return Result(
        engine=rival.name,
        context=context,
        batch=batch,
        ms_per_step=seconds * 1e3,
        tokens_per_s=batch / mean,
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
    said = str(error).lower()
    return isinstance(error, CapacityError) or "out of memory" in said or "can't allocate memory" in said


def free() -> None:
    """Give back what the engines of a case held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
