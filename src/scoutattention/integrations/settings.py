"""Settings of the method and of the engine, as another program's user gives them: by name, in one table."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields

from ..config import EngineConfig, ScoutConfig
from ..engine.llm import read_engine_options
from ..errors import ConfigError

METHOD = tuple(item.name for item in fields(ScoutConfig) if item.name != "calibration")
"""Settings of the method. Stored calibrations are of models that the engine loads."""


def split_settings(given: Mapping[str, object], engine: Sequence[str], where: str) -> tuple[ScoutConfig, EngineConfig]:
    """The method's settings, and the engine's.   engine: names of those that are known.   where: for messages.

    Raises ConfigError for a setting that is not known, or a value out of range.
    """
    known = (*METHOD, *engine)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1, cutoff=0.7)
            advice = f"write {near[0]}" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{where} has no setting {name!r}: {advice}")
    method = {name: value for name, value in given.items() if name in METHOD}
    others = {name: value for name, value in given.items() if name not in METHOD}
    scout = ScoutConfig(**method, calibration=None)  # type: ignore[arg-type]  # `Checked` sees to the types
    return scout, read_engine_options(others | {"prefix_cache": False})
