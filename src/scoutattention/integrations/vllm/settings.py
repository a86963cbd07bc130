"""What `additional_config["scout"]` says: fields of `ScoutConfig`, and some of `EngineConfig`."""

from collections.abc import Mapping
from dataclasses import fields
from typing import NamedTuple

from ...config import Ablation, EngineConfig, ScoutConfig
from ...errors import ConfigError
from ..settings import split_settings
from . import NAME

ENGINE = ("device_memory", "host_memory", "kv_dtype", "workers")


class Settings(NamedTuple):
    """The method's settings, and the engine's, whose lengths and counts are vLLM's."""

    scout: ScoutConfig
    engine: EngineConfig


def read_settings(additional: object) -> Settings | None:
    """The settings of scout in vLLM's `additional_config`; None where it has none.

    Raises ConfigError for a setting that is not known, or a value out of range.
    """
    if not isinstance(additional, Mapping) or NAME not in additional:
        return None
    given = additional[NAME]
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"additional_config has {NAME}={given!r}, which is no table of settings: write "
            f'{{"{NAME}": {{"budget": 2048}}}}'
        )
    ablation = {"ablation": _ablation(given["ablation"])} if "ablation" in given else {}
    return Settings(*split_settings({**given, **ablation}, ENGINE, "scout in vLLM"))


def worker_threads(engine: EngineConfig, cores: int, *, bound: bool) -> int:
    """Worker threads of a rank.   cores: those that it may use.   bound: whether they are its own, or all ranks'."""
    return engine.workers or max(1, cores if bound else cores // engine.tensor_parallel_size)


def _ablation(given: object) -> Ablation:
    known = [item.name for item in fields(Ablation)]
    if not isinstance(given, Mapping) or not set(given) <= set(known):
        raise ConfigError(f"scout's ablation={given!r} is no table of settings: known are {', '.join(known)}")
    return Ablation(**given)
