"""Times decode steps of SmolLM2-135M at a long context: one prompt is read, and every sequence of the batch replays it.

python -m scoutattention.bench.decode.step --dtype float32 --batch 1 4 --budget 1024 --context 7936

Each case has an engine of its own. The engines take turns.
"""

import argparse
import statistics
from pydoc_data.topics import topics
from typing import NamedTuple

import torch

from ...config import DTypeName, EngineConfig, KVDTypeName, Memory, ScoutConfig
from ...engine.engine import Engine
from ...engine.runner import Record
from ...models.decoder import Decoder
from ...models.loader import load
from ..gpu.decode import Steps

TURN, WARM_UP_TURNS = 4, 1
"""Decode steps of a turn, and turns that are not counted."""


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


def start(engine: Engine, record: Record, batch: int) -> Steps:
    """Greedy decoding of sequences that have all replayed a prompt, each from another token."""
    admit(engine, batch)
    for row in range(batch):
        engine.runner.replay(row, record)
    return Steps(engine, list(range(100, 100 + batch)), record[0].k.shape[0])


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
    max_len = options.context + options.steps + WARM_UP_TURNS * TURN + 1
    ids = model.tokenizer.encode("\n".join(topics[name] for name in sorted(topics)))[: options.context]
    record = read(make_engine(model.decoder, dtype, Case(None), 1, max_len), ids)
    wanted = {name: cases(options.budget)[name] for name in options.cases}
    for batch in options.batch:
        engines = {name: make_engine(model.decoder, dtype, case, batch, max_len) for name, case in wanted.items()}
        runs = {name: start(engine, record, batch) for name, engine in engines.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(WARM_UP_TURNS + options.steps // TURN):
            for name, run in runs.items():
                taken = [run.take()[0] * 1e3 for _ in range(TURN)]
                times[name] += taken if turn >= WARM_UP_TURNS else []
        for name, engine in engines.items():
            engine.close()
            shown = f"median {statistics.median(times[name]):.1f} ms, least {min(times[name]):.1f}"
            print(f"{dtype} context {options.context} batch {batch} {name:9}: {shown}", flush=True)


if __name__ == "__main__":
    main()
