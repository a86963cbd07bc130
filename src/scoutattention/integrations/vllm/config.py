"""Before vLLM starts with the plugin: what it is asked for, and what of that runs."""

import logging
import os
from typing import Any

from .memory import check_memory
from .metrics import show
from .refusals import check_arguments, check_config, check_version
from .settings import read_settings

logger = logging.getLogger(__name__)

WORKER = "scoutattention.integrations.vllm.worker.ScoutWorker"
ENVIRONMENT = {"VLLM_USE_V2_MODEL_RUNNER": "0", "OMP_WAIT_POLICY": "PASSIVE"}
"""For vLLM's workers, unless it is set: its model runner, and threads of PyTorch that leave the cores to scout's."""


def look_at_arguments(arguments: Any) -> None:  # noqa: ANN401  # vLLM's `EngineArgs`
    """Set what the plugin needs. Raises ConfigError for what it excludes."""
    check_version()
    read_settings(arguments.additional_config)
    check_arguments(arguments)
    arguments.enable_prefix_caching, arguments.enforce_eager, arguments.worker_cls = False, True, WORKER
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def look_at_config(config: Any) -> None:  # noqa: ANN401  # vLLM's `VllmConfig`
    """Have metrics shown. Raises ConfigError, UnsupportedModelError or CapacityError for what cannot run."""
    check_config(config)
    check_memory(config)
    show(config.instance_id)
    logger.info(
        "scout has keys and values in its own store; vLLM runs eagerly, without prefix caching, with model runner V1"
    )
