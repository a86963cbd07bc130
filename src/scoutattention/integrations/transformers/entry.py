"""The way in: checks the installed library and the settings, and only then imports transformers."""

import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, TypedDict, Unpack

from ...config import Ablation, KernelsName, KVDTypeName, Memory
from ...errors import ConfigError
from ..settings import METHOD, split_settings

if TYPE_CHECKING:
    from .session import ScoutSession

OLDEST, BELOW = (5, 17), (6, 0)
"""Versions of transformers whose interfaces are known: from the first, and below the second."""


class ScoutSettings(TypedDict, total=False):
    """Fields of `ScoutConfig` and of `EngineConfig` that concern a model of transformers; sizes may be text."""

    budget: int | None
    block_size: int
    sink_blocks: int
    recent_blocks: int
    lookahead: int
    guard: float | None
    max_cpu_share: float | None
    ablation: Ablation
    device_memory: Memory | str
    host_memory: int | str | None
    kv_dtype: KVDTypeName
    kernels: KernelsName
    workers: int | None


ENGINE = tuple(name for name in ScoutSettings.__annotations__ if name not in METHOD)


def scout(model: object, **settings: Unpack[ScoutSettings]) -> "ScoutSession":
    """Let a model of transformers decode with ScoutAttention, inside `with`; behind it the model is as it was.

    An example::

        with scout(model, budget=2048) as session:
            model.generate(**inputs, max_new_tokens=256)
            print(session.stats())

    model: what `AutoModelForCausalLM` loads, in evaluation mode, on one device.   settings: see `ScoutSettings`.
    Raises ConfigError for a setting or a version of transformers that is not known, UnsupportedModelError for a model.
    """
    check_version()
    method, engine = split_settings(settings, ENGINE, "scout")
    made: ScoutSession = import_module(".session", __package__).ScoutSession(model, method, engine)
    return made


def check_version() -> None:
    """Raises ConfigError where transformers is missing, or of a version whose interfaces are not known."""
    window = f"{OLDEST[0]}.{OLDEST[1]} or newer, below {BELOW[0]}"
    try:
        installed = version("transformers")
    except PackageNotFoundError:
        raise ConfigError(
            f"scout needs transformers {window}, and it is missing: pip install 'scout-attention[transformers]'"
        ) from None
    numbers = tuple(int(part) for part in re.findall(r"\d+", installed)[:2])
    if not OLDEST <= numbers < BELOW:
        raise ConfigError(
            f"transformers {installed} is installed, and scout knows {window}: "
            "pip install 'scout-attention[transformers]'"
        )
