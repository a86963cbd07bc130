"""Times decode steps of full attention, rivals and scout on a device: one engine with different settings."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from typing_extensions import override

from ...attention.step import StepStats
from ...cache.memory_plan import plan_memory
from ...config import EngineConfig
from ...engine.device import find_device, free_memory, make_ops
from ...engine.engine import Engine
from ...errors import CapacityError
from ...models.decoder import Decoder
from ...trace.timeline import Timeline
from ..common.profiler import Event
from ..timeline.recorder import Recorder
from .cases import TRACED, LeftOut, Result, Rival, Workload
from .fetch_all import FetchAllAttention
from .idle import busy_seconds, by_name, traced
from .prompts import Prompts
from .timing import FAILURES, first_line

LONGEST_S = 5.0
"""Seconds after which the warm-up of a case ends, and after which its timing ends."""
LEAST_WARM_UP, LEAST_TIMED = 3, 4
"""Steps that are taken however slow they are. The first queues single kernels, the second is captured."""

T = TypeVar("T")
Case = tuple[int, int]
"""Context and batch."""


class Taken(NamedTuple):
    """A step: its seconds, and what it did.   replayed: whether it took as long as most steps of its engine do.

    Where an engine captures steps, the few that it queues kernel by kernel, or captures, are no replays.
    """

    seconds: float
    stats: StepStats
    replayed: bool = True


@dataclass(frozen=True)
class Bench:
    """What every case needs.

    until: the time, by `time.perf_counter`, after which no case starts.   tell: is called with every outcome.
    config_json: of the model, for other programs.   timelines: by engine, of its first case, where they are asked for.
    """

    decoder: Decoder
    prompts: Prompts
    workload: Workload
    until: float
    tell: Callable[[Result | LeftOut], object]
    config_json: Mapping[str, Any] = field(default_factory=dict)
    timelines: dict[str, Timeline] = field(default_factory=dict)


def run_together(bench: Bench, sharing: list[Rival], case: Case) -> Iterator[Result | LeftOut]:
    """Run engines of one case, one after the other. They share a store, because filling a store takes long.

    An engine that fails is left out. No engine starts when the time is over. Other programs share nothing.
    """
    if sharing[0].cache is not None:
        yield from others().run_alone(bench, sharing[0], case)
        return
    with ExitStack() as stack:
        keeper = tried(partial(make_engine, bench, sharing[0], case, None))
        if isinstance(keeper, str):
            yield from (LeftOut(rival.name, *case, keeper) for rival in sharing)
            return
        stack.callback(keeper.close)
        for rival in sharing:
            if time.perf_counter() >= bench.until:
                return
            outcome = tried(partial(run_beside, bench, rival, case, keeper))
            yield LeftOut(rival.name, *case, outcome) if isinstance(outcome, str) else outcome


def tried(call: Callable[[], T]) -> T | str:
    """What a call returns, or why it failed, as "memory: ..." or "failed: ..."."""
    try:
        return call()
    except (*FAILURES, OSError, MemoryError) as error:
        if is_out_of_memory(error):
            return f"memory: {first_line(error)}"
        return f"failed: {type(error).__name__}: {first_line(error)}"


def make_engine(bench: Bench, rival: Rival, case: Case, like: Engine | None) -> Engine:
    """An engine for a case, with a filled store or with the store of the engine `like`.

    Raises CapacityError where memory is too small.
    """
    free()  # what the last engine held, and what failed engines held
    engine_config = config_for(bench, rival, case)
    if like is None:
        check_room(bench, rival, case)
    with ExitStack() as stack:
        engine = stack.enter_context(closing(Engine(bench.decoder, rival.scout, engine_config, like=like)))
        if rival.fetch_all:
            ops = make_ops(engine_config, engine.store.device, engine.workers)
            engine.runner.attention = FetchAllAttention(engine.store, ops, bench.decoder.shape.scale)
        if like is None:
            bench.prompts.fill(engine.store)
        stack.pop_all()
    return engine


def config_for(bench: Bench, rival: Rival, case: Case) -> EngineConfig:
    """The configuration with the sizes of a case."""
    shared = bench.workload.engine_config
    return replace(
        shared,
        device_memory=rival.device_memory,
        kv_dtype=rival.kv_dtype(shared.kv_dtype),
        max_model_len=case[0] + bench.workload.more,
        max_num_seqs=case[1],
    )


def check_room(bench: Bench, rival: Rival, case: Case) -> None:
    """Raises CapacityError, before any memory is taken, where it is too small for all sequences of a case."""
    if rival.cache is not None:
        others().check_room(bench, rival, case)
        return
    engine_config = config_for(bench, rival, case)
    assert engine_config.host_memory is not None
    assert engine_config.max_model_len is not None
    free_device = free_memory(find_device(engine_config.device))
    plan = plan_memory(bench.decoder.shape, rival.scout, engine_config, engine_config.host_memory, free_device)
    needed = engine_config.max_num_seqs * plan.blocks(engine_config.max_model_len)
    if plan.pages < needed:
        on_device = rival.device_memory == "all" and free_device is not None
        where = "the device: lower --batches or --contexts" if on_device else "the host's memory: raise --host-memory"
        raise CapacityError(
            f"{engine_config.max_num_seqs} sequences of {engine_config.max_model_len} tokens need {needed} blocks of "
            f"{plan.block_size} tokens, and {plan.pages} fit {where}"
        )


def run_beside(bench: Bench, rival: Rival, case: Case, keeper: Engine) -> Result:
    """Make a rival's engine on the store of another engine, and time its steps."""
    with closing(make_engine(bench, rival, case, keeper)) as engine:
        return run(bench, rival, case, engine)


def run(bench: Bench, rival: Rival, case: Case, engine: Engine) -> Result:
    """Time an engine's steps."""
    return to_result(rival, case, *time_steps(bench, rival, case, engine))


class Trace(NamedTuple):
    """The device's work in TRACED steps; both fields are empty if the profiler saw nothing."""

    steps: list[Taken]
    events: list[Event]

    def idle_share(self, timed: list[Taken]) -> float | None:
        """Part of a median step in which the device had nothing to do, from the same steps as they ran untraced.

        Kernels that wait for the CPU do something. They wait longer in some steps than in others, so that waiting is
        left out of both sides.
        """
        busy = busy_seconds(self.events, TRACED)
        if busy is None:
            return None
        worked = busy - statistics.fmean(one.stats.unhidden_s for one in self.steps)
        whole = statistics.median(one.seconds - one.stats.unhidden_s for one in timed)
        return max(0.0, whole - worked) / statistics.median(one.seconds for one in timed)


def to_result(rival: Rival, case: Case, taken: list[Taken], trace: Trace) -> Result:
    """The result that follows from steps, and from what the device ran in TRACED steps after them.

    Steps that are no replays count only where no step is one.
    """
    timed = [one for one in taken if one.replayed] or taken
    total = sum((one.stats for one in timed), StepStats())
    median, mean = (of(one.seconds for one in timed) for of in (statistics.median, statistics.fmean))
    return Result(
        engine=rival.name,
        context=case[0],
        batch=case[1],
        steps=len(timed),
        ms_per_step=median * 1e3,
        tokens_per_s=case[1] / mean,
        device_idle_share=trace.idle_share(timed),
        hidden_ms=total.hidden_s / len(timed) * 1e3,
        unhidden_ms=total.unhidden_s / len(timed) * 1e3,
        link_bytes=total.recalled_bytes / len(timed),
        share=total.far_blocks / max(1, total.chosen_blocks),
        kernels=by_name(trace.events, TRACED),
    )


def time_steps(bench: Bench, rival: Rival, case: Case, engine: Engine) -> tuple[list[Taken], Trace]:
    """The steps of an engine after the warm-up, and what the device ran in TRACED steps after them."""
    (context, batch), store = case, engine.store
    blocks = engine.plan.blocks(engine.plan.max_len)
    for row in range(batch):
        store.admit(row, blocks, engine.plan.quota(batch, engine.plan.max_len))
    try:
        steps = Steps(engine, bench.prompts.place(engine, rival.scout, context, batch), context)
        timed = time_steps_of(steps, bench)
        if bench.workload.traced and rival.name not in bench.timelines:
            bench.timelines[rival.name] = record_steps(engine, steps)
        return timed
    finally:
        for row in range(batch):
            store.release(row)


def record_steps(engine: Engine, steps: "Stepper") -> Timeline:
    """A timeline of TRACED steps; on a GPU what its kernels did, too."""
    recorder = Recorder(engine)
    recorder.begin()
    try:
        for _ in range(TRACED):
            recorder.record(steps.take)
    finally:
        recorder.end()
    return recorder.timeline()


class Stepper(Protocol):
    """Greedy decoding of sequences."""

    def take(self) -> Taken:
        """One step."""
        ...

    def take_some(self, least: int, most: int) -> list[Taken]:
        """`most` steps, or at least `least` of them where they take longer than `LONGEST_S`."""
        taken: list[Taken] = []
        until = time.perf_counter() + LONGEST_S
        while len(taken) < most and (len(taken) < least or time.perf_counter() < until):
            taken.append(self.take())
        return taken


def time_steps_of(steps: Stepper, bench: Bench) -> tuple[list[Taken], Trace]:
    """The steps after the warm-up, and what the device ran in TRACED steps after them."""
    steps.take_some(LEAST_WARM_UP, bench.workload.warm_up)
    timed = steps.take_some(LEAST_TIMED, bench.workload.steps)
    seen: list[Taken] = []
    events = traced(lambda: seen.append(steps.take()), TRACED) if bench.decoder.device.type == "cuda" else []
    return timed, Trace(seen, events)


class Steps(Stepper):
    """Decoding of sequences that were placed in an engine."""

    def __init__(self, engine: Engine, tokens: list[int], context: int) -> None:
        """`tokens`: of each sequence, the next to be fed."""
        self._runner = engine.runner
        self._tokens = tokens
        self._position = context

    @override
    def take(self) -> Taken:
        before, started = self._runner.not_replayed, time.perf_counter()
        _, stats, self._tokens = self._runner.decode(self._tokens, [self._position] * len(self._tokens))
        self._position += 1
        return Taken(time.perf_counter() - started, stats, self._runner.not_replayed == before)


def others() -> ModuleType:
    """What runs other programs: only where they run are they loaded."""
    return import_module("scoutattention.bench.gpu.transformers")


def is_out_of_memory(error: Exception) -> bool:
    """Whether host or device memory was too small, judged by the messages of PyTorch and the driver."""
    said = str(error).lower()
    words = ("out of memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, CapacityError | MemoryError) or any(word in said for word in words)


def free() -> None:
    """Give back the memory of engines that are gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
