"""The configurations that are compared: the published design, each improvement on top of it, and all of them."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ...config import Ablation, Memory, ScoutConfig
from ...errors import ConfigError
from ...shape import ModelShape

SlotCount = Literal["budget", "twice", "all"]

LITERAL: dict[str, Any] = {
    "correct_far": False,
    "true_query_layers": (),
    "digest": "minmax",
    "pooling": "max",
    "recall_target": None,
    "predictor": "plain",
    "lookahead": 1,
    "guard": None,
    "max_cpu_share": None,
}
"""ScoutAttention as published (arXiv 2603.27138)."""

_DEFAULTS = vars(Ablation()) | vars(ScoutConfig())
ALL: dict[str, Any] = {name: _DEFAULTS[name] for name in LITERAL}


class Row(NamedTuple):
    """A configuration by name: its fields that are not the user's, and how many slots it has."""

    name: str
    fields: dict[str, Any]
    slots: SlotCount


ROWS = (
    Row("literal", LITERAL, "budget"),
    Row("+corrected", LITERAL | {"correct_far": True}, "budget"),
    Row("+true query layers", LITERAL | {"true_query_layers": ALL["true_query_layers"]}, "budget"),
    Row("+softmax mean", LITERAL | {"pooling": "mean"}, "budget"),
    Row("+keys2", LITERAL | {"digest": "keys2"}, "budget"),
    Row("+calibrated", LITERAL | {"predictor": "calibrated"}, "budget"),
    Row("+guard", LITERAL | {"guard": ALL["guard"]}, "budget"),
    Row("+slots 2x", LITERAL, "twice"),
    Row("+recall by share", LITERAL | {"recall_target": ALL["recall_target"]}, "budget"),
    Row("all", ALL, "twice"),
    Row("all, minmax", ALL | {"digest": "minmax"}, "twice"),
    Row("all, plain", ALL | {"predictor": "plain"}, "twice"),
    Row("all, no guard", ALL | {"guard": None}, "twice"),
    Row("all, any share", ALL | {"max_cpu_share": None}, "twice"),
    Row("all, 4 ahead", ALL | {"lookahead": 4}, "twice"),
    Row("all, plain, 4 ahead", ALL | {"predictor": "plain", "lookahead": 4}, "twice"),
    Row("all, no guard, 4 ahead", ALL | {"guard": None, "lookahead": 4}, "twice"),
    Row("exact", ALL | {"digest": "exact"}, "all"),
)
"""The last is the ceiling: the true query chooses by the keys themselves, among blocks that are all on the device."""

SET_BY_ROWS = (*LITERAL, "device_memory")
"""The settings that every row has values of its own for."""


@dataclass(frozen=True)
class Variant:
    """A configuration to measure: the method, and its device memory as in `EngineConfig`."""

    name: str
    scout: ScoutConfig
    device_memory: Memory


def ablation(base: ScoutConfig, shape: ModelShape) -> list[Variant]:
    """Every row of the table, with the budget and block size of `base`. Raises ConfigError where it has no budget."""
    if base.budget is None:
        raise ConfigError("an ablation needs a budget that leaves blocks out: give --budget a number of tokens")
    slots = base.budget // base.block_size * shape.block_bytes(base.block_size)
    memory: dict[SlotCount, Memory] = {"budget": slots, "twice": "slots", "all": "all"}
    return [Variant(row.name, base.changed(**row.fields), memory[row.slots]) for row in ROWS]
