"""The way in: vLLM calls `register` in each of its processes. Everything else is imported when it is asked for."""

import sys
from collections.abc import Mapping
from functools import wraps
from importlib import import_module
from typing import Any

from vllm.engine.arg_utils import EngineArgs

from ...errors import ScoutError
from . import NAME


def register() -> None:
    """Have vLLM's arguments looked at. Without settings of scout among them, vLLM does what it did.

    vLLM has no hook between its arguments and its configuration, so this wraps the one function that is there.
    """
    original = EngineArgs.create_engine_config
    if getattr(original, "looks_for_scout", False):
        return

    @wraps(original)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # as those of the original
        if not (isinstance(self.additional_config, Mapping) and NAME in self.additional_config):
            return original(self, *args, **kwargs)
        checks = import_module(".config", __package__)
        try:
            checks.look_at_arguments(self)
            config = original(self, *args, **kwargs)
            checks.look_at_config(config)
        except ScoutError as error:
            if "OPENAI_API_SERVER" in (*args, *kwargs.values()):  # a user of a command wants no traceback
                sys.exit(f"scout: {error}")
            raise
        return config

    create_engine_config.looks_for_scout = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = create_engine_config
