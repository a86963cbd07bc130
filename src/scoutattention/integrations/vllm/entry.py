"""The way in: vLLM calls `register` in each of its processes."""

import logging
from functools import wraps
from typing import Any

from vllm.engine.arg_utils import EngineArgs

from .refusals import check_arguments, check_config, check_version
from .settings import read_settings

logger = logging.getLogger(__name__)

WORKER = "scoutattention.integrations.vllm.worker.ScoutWorker"


def register() -> None:
    """Have vLLM's arguments looked at. Without settings of scout among them, vLLM does what it did.

    vLLM has no hook between its arguments and its configuration, so this wraps the one function that is there.
    """
    original = EngineArgs.create_engine_config
    if getattr(original, "looks_for_scout", False):
        return

    @wraps(original)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # as those of the original
        if read_settings(self.additional_config) is None:
            return original(self, *args, **kwargs)
        check_version()
        check_arguments(self)
        self.enable_prefix_caching, self.enforce_eager, self.worker_cls = False, True, WORKER
        config = original(self, *args, **kwargs)
        check_config(config)
        logger.info("scout: vLLM runs eagerly and without prefix caching; keys and values are in scout's store")
        return config

    create_engine_config.looks_for_scout = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = create_engine_config
