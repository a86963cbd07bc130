"""Times the cores of a CPU where memory does not hold them up: layers of a tiny model, and products in a cache."""

from collections.abc import Mapping
from contextlib import ExitStack, closing
from typing import Any

import torch

from ...config import EngineConfig, Memory, ScoutConfig
from ...engine.engine import Engine
from ...engine.runner import Record
from ...hardware.measure import Pace, PerSequence
from ...kernels.native import RowKernels
from ...models.decoder import Decoder
from ...models.formats.dummy import dummy_decoder
from ...runtime.stored import StoredKind
from ...runtime.workers import Workers
from ..common.measure import interleaved
from ..kernels.stored import random_blocks
from .step import read, start

LAYERS, BATCHES = (4, 20), (1, 4)
"""Layers of two models, and sequences of a step: their differences are a layer and a sequence."""
CONTEXT, ROUNDS = 256, 60
"""Tokens of the prompt; steps, of which the median counts."""
MODEL: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 2 * CONTEXT,
    "rms_norm_eps": 1e-5,
}
"""The models' config.json, but for the layers. They and their cache are so small that reading takes no time."""
FULL, ONE_MEMORY = ScoutConfig(budget=None), ScoutConfig(budget=CONTEXT // 2)
DESIGNS: tuple[tuple[ScoutConfig, Memory], ...] = (
    (FULL, None),
    (ONE_MEMORY, None),
    (ScoutConfig(budget=CONTEXT // 2, lookahead=0), "slots"),
    (ONE_MEMORY, "slots"),
)
"""Full attention, a budget in one memory, and slots without and with a predicted query."""
ROWS, COLUMNS, LINES = 16, 512, 1024


def measure_pace() -> Pace:
    """The pace of this computer; takes some ten seconds."""
    few, many = (_model_steps(layers) for layers in LAYERS)
    one, some = map(_parts, few, many)
    return Pace(_flops(), *map(_per_sequence, one, some))


def _parts(few: list[float], many: list[float]) -> list[float]:
    """The seconds that `Pace` tells apart.   few, many: of a step in each of `DESIGNS`, with so many layers."""
    layers = ((long - short) / (LAYERS[1] - LAYERS[0]) for short, long in zip(few, many, strict=True))
    full, one_memory, slots, predicted = layers
    return [few[0] - LAYERS[0] * full, full, one_memory - full, slots - full, predicted - slots]


def _per_sequence(one: float, some: float) -> PerSequence:
    """Of what takes so long with each of `BATCHES`. A negative time is noise, and counts as 0."""
    return PerSequence(max(0.0, one), max(0.0, (some - one) / (BATCHES[1] - BATCHES[0])))


def _model_steps(layers: int) -> list[list[float]]:
    """Median seconds of a step, for each of `BATCHES` and each of `DESIGNS`."""
    decoder = dummy_decoder({**MODEL, "num_hidden_layers": layers}, 2 * CONTEXT, torch.device("cpu"))
    record = read(_engine(decoder, FULL, None, 1), list(range(CONTEXT)))
    return [_steps(decoder, record, batch) for batch in BATCHES]


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
    with Workers(1) as workers:
        kernels = RowKernels(workers)
        (seconds,) = interleaved([lambda: kernels.linear(rows, matrix)], ROUNDS)
    return 2 * ROWS * COLUMNS * LINES / seconds
