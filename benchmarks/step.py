"""Times decode steps of SmolLM2-135M at a long context: one prompt is read, and every sequence of the batch replays it.

python benchmarks/step.py --dtype float32 --batch 1 4 --budget 1024 --context 7936

What is compared has an engine each; they take turns.
"""

import argparse
import statistics
import time
from typing import NamedTuple

import torch

from scoutattention.config import DTypeName, EngineConfig, KVDTypeName, Memory, ScoutConfig
from scoutattention.engine.engine import Engine
from scoutattention.engine.runner import Record
from scoutattention.eval.text import first_tokens, prose
from scoutattention.models.decoder import Decoder
from scoutattention.models.loader import load

WARM_UP = 4
TURN = 4


class Case(NamedTuple):
    """What differs between engines."""

    budget: int | None
    device_memory: Memory = None
    kv_dtype: KVDTypeName = "auto"


def cases(budget: int) -> dict[str, Case]:
    """Every case by name; without a name of its own, all is in one memory."""
    return {
        "one": Case(budget),
        "int8": Case(budget, kv_dtype="int8"),
        "int4": Case(budget, kv_dtype="int4"),
        "slots": Case(budget, device_memory="slots"),
        "full": Case(None),
        "full-int8": Case(None, kv_dtype="int8"),
    }


def make_engine(decoder: Decoder, dtype: DTypeName, case: Case, batch: int, max_len: int) -> Engine:
    """An engine for so many sequences."""
    machine = EngineConfig(case.device_memory, None, max_len, batch, dtype, case.kv_dtype)
    return Engine(decoder, ScoutConfig(budget=case.budget), machine)


def read(engine: Engine, ids: list[int], max_len: int) -> Record:
    """The record of a prompt."""
    record = Record()
    engine.store.admit(0, engine.plan.blocks(max_len), engine.plan.quota(1, max_len))
    engine.runner.prefill(0, ids, record=record)
    engine.close()
    return record


class Run:
    """An engine whose sequences have all replayed a prompt."""

    def __init__(self, engine: Engine, record: Record, batch: int) -> None:
        self.engine = engine
        self._length = record[0].k.shape[0]
        self._tokens = list(range(100, 100 + batch))
        max_len = engine.plan.max_len
        for row in range(batch):
            engine.store.admit(row, engine.plan.blocks(max_len), engine.plan.quota(batch, max_len))
            engine.runner.replay(row, record)

    def steps(self, count: int) -> list[float]:
        """Milliseconds of each of `count` greedy steps."""
        times = []
        for _ in range(count):
            started = time.perf_counter()
            logits, _ = self.engine.runner.decode(self._tokens, [self._length] * len(self._tokens))
            self._tokens = logits.argmax(-1).tolist()
            self._length += 1
            times.append((time.perf_counter() - started) * 1e3)
        return times


def main() -> None:
    """Print the median step of every case for every batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--context", type=int, default=7936)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--cases", nargs="+", default=["one", "int8", "slots", "full"], choices=list(cases(1024)))
    options = parser.parse_args()
    model = load("smollm2", options.dtype)
    max_len = options.context + options.steps + WARM_UP + 1
    reader = make_engine(model.decoder, options.dtype, Case(None), 1, max_len)
    record = read(reader, first_tokens(model.tokenizer, prose(), options.context), max_len)
    wanted = {name: cases(options.budget)[name] for name in options.cases}
    for batch in options.batch:
        engines = {
            name: make_engine(model.decoder, options.dtype, case, batch, max_len) for name, case in wanted.items()
        }
        runs = {name: Run(engine, record, batch) for name, engine in engines.items()}
        times: dict[str, list[float]] = {name: run.steps(WARM_UP)[:0] for name, run in runs.items()}
        for _ in range(options.steps // TURN):
            for name, run in runs.items():
                times[name] += run.steps(TURN)
        for name, run in runs.items():
            run.engine.close()
            shown = f"median {statistics.median(times[name]):.1f} ms, least {min(times[name]):.1f}"
            print(f"{options.dtype} context {options.context} batch {batch} {name:9}: {shown}", flush=True)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
