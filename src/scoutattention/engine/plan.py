"""`scout="auto"`: full attention or scout, whichever the planner finds faster on this computer."""

from dataclasses import replace
from pathlib import Path

from ..config import EngineConfig, ScoutConfig
from ..errors import CapacityError, ConfigError
from ..hardware.gpu import read_driver
from ..hardware.host import Host
from ..hardware.measure import stored
from ..planner.computers import GIB, Computer, this_computer
from ..planner.memory import missing
from ..planner.planner import check_weights, recommend, work_of
from ..shape import NamedShape


def choose(model: NamedShape, engine_config: EngineConfig, folder: Path) -> tuple[ScoutConfig, EngineConfig]:
    """The settings for `max_num_seqs` sequences of `max_model_len` tokens, or of the model's own limit.

    folder: where `scout doctor --measure` keeps what it found.
    Raises ConfigError for settings that leave nothing to choose, CapacityError where not even one sequence fits.
    """
    if engine_config.device_memory is not None:
        raise ConfigError("scout='auto' decides what is on the device: leave device_memory out, or give a ScoutConfig")
    if engine_config.tensor_parallel_size > 1:
        raise ConfigError("scout='auto' plans for one process: set tensor_parallel_size to 1, or give a ScoutConfig")
    computer = _computer(engine_config, folder)
    check_weights(model, computer)
    context = engine_config.max_model_len or model.shape.max_positions
    work = work_of(model, ScoutConfig(), context)._replace(kv_dtype=engine_config.kv_dtype)
    kinds = (engine_config.kv_dtype,)
    best = recommend(work, computer, engine_config.max_num_seqs, kinds) or recommend(work, computer, kinds=kinds)
    if best is None:
        lacks = missing("scout", work, computer)
        raise CapacityError(
            f"one sequence of {context} tokens misses {lacks.device / GIB:.1f} GiB of device memory and "
            f"{lacks.host / GIB:.1f} GiB of host memory: lower max_model_len"
        )
    if best.design == "full":
        return ScoutConfig(budget=None), replace(engine_config, device_memory="all")
    cache = engine_config.host_memory or best.host_memory
    return ScoutConfig(lookahead=best.lookahead), replace(engine_config, host_memory=cache)


def _computer(engine_config: EngineConfig, folder: Path) -> Computer:
    """What this process runs on, without the GPU where the CPU is the device."""
    driver = read_driver() if engine_config.device == "cuda" else None
    return this_computer(Host(), driver, stored(folder))
