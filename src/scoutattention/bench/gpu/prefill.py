"""How fast engines read a prompt."""

import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial

import torch

from .cases import LeftOut, Rival
from .decode import Bench, check_room, free, make_engine, others, tried
from .rounds import frozen_garbage

LONGEST = 8192
"""Tokens of the prompt, at most: so that all engines take a minute together."""
TIMES = 2
"""Readings, of which the fastest counts: the first one compiles."""


def prefill_speeds(bench: Bench, engines: Sequence[Rival]) -> tuple[int, dict[str, float], list[LeftOut]]:
    """A prompt's tokens; by engine, how many of them it reads in a second; and the engines that could not.

    No engine starts when the time is over.
    """
    length = min(LONGEST, max(bench.workload.contexts))
    tokens = torch.randint(0, bench.decoder.shape.vocab_size, (length,), generator=torch.Generator().manual_seed(0))
    speeds: dict[str, float] = {}
    left_out = []
    with frozen_garbage():
        for rival in engines:
            if time.perf_counter() >= bench.until:
                break
            seconds = tried(partial(_read_seconds, bench, rival, tokens.tolist()))
            if isinstance(seconds, str):
                left_out.append(LeftOut(rival.name, length, 1, seconds))
            else:
                speeds[rival.name] = length / min(seconds)
    return length, speeds, left_out


def _read_seconds(bench: Bench, rival: Rival, tokens: list[int]) -> list[float]:
    case = (len(tokens), 1)
    if rival.cache is not None:
        free()
        check_room(bench, rival, case)
        taken: list[float] = others().read_seconds(bench, rival, tokens, TIMES)
        return taken
    with closing(make_engine(bench, rival, case, None)) as engine:
        taken, store, plan = [], engine.store, engine.plan
        for _ in range(TIMES):
            store.admit(0, plan.blocks(plan.max_len), plan.quota(1, plan.max_len))
            started = time.perf_counter()
            engine.runner.prefill(0, tokens).argmax().item()
            taken.append(time.perf_counter() - started)
            store.release(0)
    return taken
