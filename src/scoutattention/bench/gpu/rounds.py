"""The order of the GPU benchmark's cases: the largest batch of every context first, until the time is over."""

import gc
import itertools
import time
from bisect import bisect_left
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from .cases import AS_MANY, MOST_AT_ONCE, LeftOut, Measured, Result, Rival
from .decode import Bench, Case, check_room, free, run_together, tried


class Queue(NamedTuple):
    """Rivals that share a store, at one context.   batches: those that did not run yet, the largest last."""

    context: int
    sharing: list[Rival]
    batches: list[int]

    @property
    def cases(self) -> int:
        """One for each rival and batch."""
        return len(self.sharing) * len(self.batches)


def measure(bench: Bench, engines: Sequence[Rival]) -> Measured:
    """Run the cases in rounds, and tell each outcome as it comes.

    The first round takes the largest batch that fits of every context and store; each later round takes the next
    smaller batch.
    """
    kv_dtype = bench.workload.engine_config.kv_dtype
    groups: dict[Hashable, list[Rival]] = {}
    for rival in engines:
        groups.setdefault(rival.store(kv_dtype), []).append(rival)
    queues: list[Queue] = []
    results: list[Result] = []
    left_out: list[LeftOut] = []
    with frozen_garbage():
        for context, sharing in itertools.product(bench.workload.contexts, groups.values()):
            queue, without = with_room(bench, context, sharing)
            queues.append(queue)
            left_out += without
        for left in left_out:
            bench.tell(left)
        waiting = sum(queue.cases for queue in queues)
        for outcome in rounds(bench, queues):
            bench.tell(outcome)
            waiting -= 1
            if isinstance(outcome, Result):
                results.append(outcome)
            else:
                left_out.append(outcome)
    return Measured(results, left_out, waiting)


@contextmanager
def frozen_garbage() -> Iterator[None]:
    """Exclude all existing objects from garbage collection: scanning them takes as long as a short case."""
    free()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def with_room(bench: Bench, context: int, sharing: list[Rival]) -> tuple[Queue, list[LeftOut]]:
    """The batches that memory suffices for, and why it does not suffice for the next larger one."""
    wanted = set(bench.workload.batches)
    if AS_MANY in wanted:
        wanted = wanted - {AS_MANY} | {most_that_fit(bench, context, sharing)}
    fitting: list[int] = []
    for batch in sorted(wanted):
        why = _no_room(bench, sharing[:1], (context, batch))
        if why is not None:
            return Queue(context, sharing, fitting), [LeftOut(rival.name, context, batch, why) for rival in sharing]
        fitting.append(batch)
    return Queue(context, sharing, fitting), []


def most_that_fit(bench: Bench, context: int, sharing: list[Rival]) -> int:
    """The largest batch that memory suffices for by the plans of all rivals; 1 where it suffices for none."""
    batches = range(1, MOST_AT_ONCE + 1)
    return max(1, bisect_left(batches, True, key=lambda batch: _no_room(bench, sharing, (context, batch)) is not None))


def _no_room(bench: Bench, rivals: list[Rival], case: Case) -> str | None:
    """Why memory is too small for a rival's case, if it is."""
    failures = (tried(partial(check_room, bench, rival, case)) for rival in rivals)
    return next((why for why in failures if why is not None), None)


def rounds(bench: Bench, queues: list[Queue]) -> Iterator[Result | LeftOut]:
    """The outcomes of all cases that begin in time."""
    while any(queue.batches for queue in queues) and time.perf_counter() < bench.until:
        for queue in queues:
            yield from next_batch(bench, queue)


def next_batch(bench: Bench, queue: Queue) -> Iterator[Result | LeftOut]:
    """The outcomes of a queue's largest batch. Where memory was too small for all rivals, the next batch follows."""
    fits = False
    while queue.batches and not fits and time.perf_counter() < bench.until:
        for outcome in run_together(bench, queue.sharing, (queue.context, queue.batches.pop())):
            fits = fits or isinstance(outcome, Result) or outcome.failed
            yield outcome
