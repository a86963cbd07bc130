"""Times decode steps of SmolLM2-135M at a long context: one prompt is read, and every sequence of the batch replays it.

python -m scoutattention.bench.decode.step --dtype float32 --batch 1 4 --budget 1024 --context 7936

Each case has an engine of its own. The engines take turns.
"""

import argparse
import statistics
import time
from pydoc_data.topics import topics
from typing import NamedTuple

import torch

from ...config import DTypeName, EngineConfig, KVDTypeName, Memory, ScoutConfig
from ...engine.engine import Engine
from ...engine.runner import Record
from ...models.decoder import Decoder
from ...models.loader import load

WARM_UP, TURN = 4, 4
"""Steps that are not counted, and steps of a turn."""


class Case(NamedTuple):
    """What differs between engines."""

    budget: int | None
    device_memory: Memory = None
    kv_dtype: KVDTypeName = "auto"


def cases(budget: int) -> dict[str, Case]:
    """Every case by name; "slots" divides the memory, the others keep everything in one."""
    return {
        "one": Case(budget),
        "int8": Case(budget, kv_dtype="int8"),
        "int4": Case(budget, kv_dtype="int4"),
        "slots": Case(budget, device_memory="slots"),
        "full": Case(None),
        "full-int8": Case(None, kv_dtype="int8"),
    }


def make_engine(decoder: Decoder, dtype: DTypeName, case: Case, batch: int, max_len: int) -> Engine:
    """An engine for `batch` sequences of up to `max_len` tokens."""
    engine_config = EngineConfig(case.device_memory, None, max_len, batch, dtype, case.kv_dtype)
    return Engine(decoder, ScoutConfig(budget=case.budget), engine_config)


def admit(engine: Engine, batch: int) -> None:
    """Reserve memory for every row of a batch."""
    blocks, quota = engine.plan.blocks(engine.plan.max_len), engine.plan.quota(batch, engine.plan.max_len)
    for row in range(batch):
        engine.store.admit(row, blocks, quota)


def read(engine: Engine, ids: list[int]) -> Record:
    """The record of a prompt; the engine is closed."""
    record = Record()
    admit(engine, 1)
    engine.runner.prefill(0, ids, record=record)
    engine.close()
    return record


class Run:
    """An engine whose sequences have all replayed a prompt."""

    def __init__(self, engine: Engine, record: Record, batch: int) -> None:
        self.engine = engine
        self._length = record[0].k.shape[0]
        self._tokens = list(range(100, 100 + batch))
        admit(engine, batch)
        for row in range(batch):
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


@torch.no_grad()
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
    model, dtype = load("smollm2", options.dtype), options.dtype
    max_len = options.context + options.steps + WARM_UP + 1
    ids = model.tokenizer.encode("\n".join(topics[name] for name in sorted(topics)))[: options.context]
    record = read(make_engine(model.decoder, dtype, Case(None), 1, max_len), ids)
    wanted = {name: cases(options.budget)[name] for name in options.cases}
    for batch in options.batch:
        runs = {
            name: Run(make_engine(model.decoder, dtype, case, batch, max_len), record, batch)
            for name, case in wanted.items()
        }
        times: dict[str, list[float]] = {name: run.steps(WARM_UP)[:0] for name, run in runs.items()}
        for _ in range(options.steps // TURN):
            for name, run in runs.items():
                times[name] += run.steps(TURN)
        for name, run in runs.items():
            run.engine.close()
            shown = f"median {statistics.median(times[name]):.1f} ms, least {min(times[name]):.1f}"
            print(f"{dtype} context {options.context} batch {batch} {name:9}: {shown}", flush=True)


if __name__ == "__main__":
    main()
