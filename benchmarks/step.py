"""Times decode steps of SmolLM2-135M at a long context: one prompt is read, and every sequence of the batch replays it.

python benchmarks/step.py --dtype float32 --batch 1 4 --budget 1024 --context 7936
"""

import argparse
import statistics
import time
from typing import Any, cast

import torch

from scoutattention.config import DTypeName, EngineConfig, ScoutConfig
from scoutattention.engine.engine import Engine
from scoutattention.engine.runner import Record
from scoutattention.eval.text import first_tokens, prose
from scoutattention.models.decoder import Decoder
from scoutattention.models.loader import load

WARM_UP = 4


def make_engine(decoder: Decoder, scout: ScoutConfig, batch: int, max_len: int, **machine: Any) -> Engine:
    """An engine for so many sequences."""
    dtype = cast(DTypeName, decoder.shape.dtype)
    config = EngineConfig(max_model_len=max_len, max_num_seqs=batch, dtype=dtype, **machine)
    return Engine(decoder, scout, config)


def read(decoder: Decoder, ids: list[int], max_len: int) -> Record:
    """The record of a prompt."""
    engine, record = make_engine(decoder, ScoutConfig(), 1, max_len), Record()
    engine.store.admit(0, engine.plan.blocks(max_len), engine.plan.quota(1, max_len))
    engine.runner.prefill(0, ids, record=record)
    engine.close()
    return record


def steps(engine: Engine, record: Record, batch: int, count: int) -> list[float]:
    """Seconds of each of `count` greedy steps."""
    length, max_len = record[0].k.shape[0], engine.plan.max_len
    for row in range(batch):
        engine.store.admit(row, engine.plan.blocks(max_len), engine.plan.quota(batch, max_len))
        engine.runner.replay(row, record)
    tokens, times = list(range(100, 100 + batch)), []
    for step in range(WARM_UP + count):
        started = time.perf_counter()
        logits, _ = engine.runner.decode(tokens, [length + step] * batch)
        tokens = logits.argmax(-1).tolist()
        times.append(time.perf_counter() - started)
    return times[WARM_UP:]


def main() -> None:
    """Print the median step for every batch, with a budget in one memory, packed and in slots, and with full attention."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--context", type=int, default=7936)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--digest", default="keys2")
    parser.add_argument("--steps", type=int, default=24)
    options = parser.parse_args()
    model = load("smollm2", options.dtype)
    max_len = options.context + options.steps + WARM_UP + 1
    record = read(model.decoder, first_tokens(model.tokenizer, prose(), options.context), max_len)
    some = ScoutConfig(budget=options.budget, digest=options.digest)
    cases: dict[str, tuple[ScoutConfig, dict[str, str]]] = {
        f"budget {options.budget}": (some, {}),
        f"budget {options.budget}, int8": (some, {"kv_dtype": "int8"}),
        f"budget {options.budget}, slots": (some, {"device_memory": "slots"}),
        "full attention": (ScoutConfig(budget=None), {}),
    }
    for batch in options.batch:
        for name, (scout, machine) in cases.items():
            engine = make_engine(model.decoder, scout, batch, max_len, **machine)
            times = [seconds * 1e3 for seconds in steps(engine, record, batch, options.steps)]
            engine.close()
            median = statistics.median(times)
            print(
                f"{options.dtype} context {options.context} batch {batch} {name:18}: median {median:.1f} ms, "
                f"least {min(times):.1f}, most {max(times):.1f}",
                flush=True,
            )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
