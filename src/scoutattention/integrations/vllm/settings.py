"""What `additional_config["scout"]` says: fields of `ScoutConfig`, and some of `EngineConfig`."""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from ...config import Ablation, EngineConfig, ScoutConfig
from ...config.fields import parse_size
from ...errors import ConfigError

NAME = "scout"
"""Of the settings in vLLM's `additional_config`."""
METHOD = tuple(item.name for item in fields(ScoutConfig) if item.name != "calibration")
ENGINE = ("device_memory", "host_memory", "kv_dtype", "workers")
SIZES = ("device_memory", "host_memory")


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
    known = (*METHOD, *ENGINE)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            advice = f"write {near[0]}" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"scout in vLLM has no setting {name!r}: {advice}")
    method: dict[str, Any] = {name: value for name, value in given.items() if name in METHOD}
    if "ablation" in method:
        method["ablation"] = _ablation(method["ablation"])
    engine = {name: value for name, value in given.items() if name in ENGINE}
    for name in SIZES:
        value = engine.get(name)
        if isinstance(value, str) and value not in ("all", "slots"):
            engine[name] = parse_size(value)
    return Settings(ScoutConfig(**method, calibration=None), EngineConfig(**engine, prefix_cache=False))


def _ablation(given: object) -> Ablation:
    known = [item.name for item in fields(Ablation)]
    if not isinstance(given, Mapping) or not set(given) <= set(known):
        raise ConfigError(f"scout's ablation={given!r} is no table of settings: known are {', '.join(known)}")
    return Ablation(**given)
