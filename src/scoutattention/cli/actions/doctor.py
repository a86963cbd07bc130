"""What `scout doctor` adds: of MODEL, what it takes, from its headers alone; of --measure, this computer's speed."""

import time
from pathlib import Path

import torch

from ...bench.common.measure import interleaved
from ...bench.decode.pace import measure_pace
from ...cache.memory_plan import digest_bytes, plan_memory
from ...config import EngineConfig, ScoutConfig
from ...config.fields import format_bytes
from ...errors import CapacityError
from ...hardware.doctor import Check
from ...hardware.host import Host, available_memory, read_cpu, read_memory
from ...hardware.measure import Measured, store
from ...models.config import ModelConfig
from ...models.loader import QUANTISED, config_of, open_model
from ...models.resolve import gguf_file
from ...runtime.workers import Workers

PROGRAM = 350 << 20
"""Bytes of PyTorch, this package and a tokenizer, about."""
CONTEXTS = (1024, 8192, 32_768, 131_072)


READ_BYTES, ROUNDS = 512 << 20, 15
"""What a round reads, or a quarter of the free memory where that is less; and rounds, of which the median counts."""


def measure_computer(folder: Path) -> list[Check]:
    """How fast threads read memory, and cores decode; kept in `folder`.   Raises CacheFolderError if it cannot be.

    Memory is read before the cores are timed and after, for on a shared computer its speed changes within seconds.
    """
    before, threads = _reads()
    pace = measure_pace()
    after, _ = _reads()
    measured = Measured(read_cpu(Host())[0], threads, (before + after) / 2, pace, time.strftime("%Y-%m-%d"))
    memory = f"{threads} threads read {measured.reads / 1e9:.0f} GB/s"
    layer = f"a layer takes {pace.full.first * 1e6:.0f} µs without reading memory"
    cores = f"{layer}; a core does {pace.flops / 1e9:.0f} GFLOP/s"
    kept = f"kept in {store(folder, measured)}, for `scout plan --hardware measured`"
    return [Check("memory speed", memory, kept), Check("core speed", cores, "`scout plan` uses both for a CPU")]


def _reads() -> tuple[float, int]:
    """Bytes per second that all threads read, and how many threads those are."""
    data = torch.ones(min(READ_BYTES, available_memory() // 4) // 8, dtype=torch.int64)
    with Workers() as workers:
        (seconds,) = interleaved([lambda: workers.read(data)], ROUNDS)
        return data.nbytes / seconds, workers.threads


def check_model(name: str, host: Host) -> list[Check]:
    """What a model takes on a CPU with the default settings.   Raises what opening a model raises."""
    files = open_model(name)
    config = config_of(files, "auto")
    weights, dtype, scheme = files.weight_bytes(config), config.shape.dtype, files.quantised
    where = f"in {dtype}"
    if gguf_file(name) is not None:
        where = "of the file, mapped"
    elif scheme is not None:
        where += (
            f" and, quantised with {scheme.name}, in blocks" if scheme.in_blocks else f", expanded from {scheme.name}"
        )
    halves = "; --dtype bfloat16 halves that" if dtype == "float32" else ""
    place = "expanded" if scheme is not None and scheme.in_blocks else "on a GPU"
    advice = f"{place} {format_bytes(config.weights * config.shape.dtype_bytes)} in {dtype}{halves}"
    if scheme is None or not scheme.in_blocks:
        sizes = {key: config.weights // kind.length * kind.size for key, kind in QUANTISED.items()}
        advice += "; on a CPU " + ", ".join(f"{format_bytes(size)} with --weights {key}" for key, size in sizes.items())
    return [
        Check("weights", f"{format_bytes(weights)} {where}", advice),
        Check("program", f"about {format_bytes(PROGRAM)}", "PyTorch, kernels and the tokenizer"),
        _check_cache(config),
        _check_room(config, weights, read_memory(host).usable),
    ]


def _check_cache(config: ModelConfig) -> Check:
    each, longest = _token_bytes(config), config.shape.max_positions
    lengths = [length for length in CONTEXTS if length < longest] + [longest]
    advice = ", ".join(f"{length:,} tokens {format_bytes(length * each)}" for length in lengths)
    return Check("KV cache", f"{format_bytes(each)} a token in {config.shape.dtype}, with digests", advice)


def _check_room(config: ModelConfig, weights: int, free: int) -> Check:
    """How long a sequence may be: half of what the weights leave is for the cache."""
    left, scout = free - weights - PROGRAM, ScoutConfig()
    value = f"{format_bytes(max(0, left))} of {format_bytes(free)} are left beside weights and program"
    try:
        plan = plan_memory(config.shape, scout, EngineConfig(max_num_seqs=1), max(0, left))
    except CapacityError:
        return Check("room", value, "too little for one block of the KV cache: use a smaller model", "problem")
    tokens = min(plan.pages * plan.block_size, config.shape.max_positions)
    if tokens < config.shape.max_positions:
        return Check(
            "room", value, f"one sequence of {tokens:,} tokens fits; --host-memory gives the cache more", "note"
        )
    return Check("room", value, f"one sequence of the model's {tokens:,} tokens fits")


def _token_bytes(config: ModelConfig) -> float:
    size = ScoutConfig().block_size
    return config.shape.kv_bytes_per_token + digest_bytes(config.shape, ScoutConfig()) / size
