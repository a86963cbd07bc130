"""Times the cores of a CPU where memory does not hold them up: layers of a tiny model, and products in a cache."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from typing import Any

import torch

from ...config import EngineConfig, Memory, ScoutConfig
from ...engine.engine import Engine
from ...engine.runner import Record
from ...hardware.measure import Pace, PerLayer
from ...kernels.native import RowKernels
from ...models.decoder import Decoder
from ...models.formats.dummy import dummy_decoder
from ...runtime.stored import StoredKind
from ...runtime.workers import Workers
from ..common.measure import interleaved
from ..kernels.stored import random_blocks
from .step import read, start

LAYERS, CONTEXT, BATCHES, ROUNDS = 16, 512, (1, 4), 60
"""Of the model; tokens of its prompt; sequences of a step; steps, of which the median counts."""
MODEL: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 2 * CONTEXT,
    "rms_norm_eps": 1e-5,
}
"""Its config.json. All of it, and its cache, fits in a core's own cache."""
FULL, ONE_MEMORY = ScoutConfig(budget=None), ScoutConfig(budget=CONTEXT // 4)
DESIGNS: tuple[tuple[ScoutConfig, Memory], ...] = (
    (FULL, None),
    (ONE_MEMORY, None),
    (ScoutConfig(budget=CONTEXT // 4, lookahead=0), "slots"),
    (ScoutConfig(budget=CONTEXT // 4), "slots"),
)
"""Full attention, a budget in one memory, and slots without and with a predicted query."""
ROWS, COLUMNS, LINES = 16, 512, 1024


def measure_pace() -> Pace:
    """The pace of this computer; takes some seconds."""
    one, many = _layers()
    parts = zip(_parts(one), _parts(many), strict=True)
    full, choice, call, scout = (
        PerLayer(first, max(0.0, (all_ - first) / (BATCHES[1] - BATCHES[0]))) for first, all_ in parts
    )
    return Pace(_flops(), full, choice, call, scout)


def _parts(seconds: list[float]) -> Iterator[float]:
    """What `Pace` tells apart, of the seconds of a layer in each design."""
    full, one_memory, slots, predicted = seconds
    for part in (full, one_memory - full, slots - full, predicted - slots):
        yield max(0.0, part)


def _layers() -> list[list[float]]:
    """Median seconds of a layer, for each of `BATCHES` and each of `DESIGNS`."""
    decoder = dummy_decoder(MODEL, 2 * CONTEXT, torch.device("cpu"))
    record = read(_engine(decoder, FULL, None, 1), list(range(CONTEXT)))
    return [[step / LAYERS for step in _steps(decoder, record, batch)] for batch in BATCHES]


def _steps(decoder: Decoder, record: Record, batch: int) -> list[float]:
    """Median seconds of a step in each of `DESIGNS`, which take turns."""
    with ExitStack() as stack:
        engines = [stack.enter_context(closing(_engine(decoder, *design, batch))) for design in DESIGNS]
        return interleaved([start(engine, record, batch).take for engine in engines], ROUNDS)


def _engine(decoder: Decoder, scout: ScoutConfig, memory: Memory, batch: int) -> Engine:
    return Engine(decoder, scout, EngineConfig(memory, None, 2 * CONTEXT, batch, "float32"))


def _flops() -> float:
    """Operations per second of a core, in products that all read from its own cache."""
    rows, matrix = torch.randn(ROWS, COLUMNS), random_blocks(StoredKind.Q4_1, LINES, COLUMNS)
    with Workers() as workers:
        kernels = RowKernels(workers)
        (seconds,) = interleaved([lambda: kernels.linear(rows, matrix)], ROUNDS)
        return 2 * ROWS * COLUMNS * LINES / seconds / workers.threads
