"""The device that an engine runs on, and what of the native, Triton, CUDA and plain kernels it attends with."""

import importlib.util
import sys
from importlib import import_module

import torch

from ..attention.far import FarTransport, WorkerTransport
from ..attention.far_stream import StreamTransport
from ..cache.store import KVStore
from ..config import DeviceName, EngineConfig, KernelsName
from ..errors import ConfigError
from ..kernels import reference_rows
from ..kernels.native import ManyRowKernels, NativeOps, RowKernels
from ..kernels.ops import Ops
from ..kernels.plain import PlainOps
from ..models.decoder import FEW_ROWS, Decoder
from ..runtime.workers import Workers

LONGEST_WAIT_S = 10.0
"""Seconds that the device waits for the CPU before it goes on, and the step fails."""
SPARE_CORES = 2
"""Cores that workers leave free beside a GPU: one looks for its calls, and the main thread waits on another."""
OLDEST = (8, 0)
"""Compute capability of the first GPUs with bfloat16 in their matrix units."""


def find_device(name: DeviceName, index: int = 0, size: int = 1) -> torch.device:
    """The device of that name, checked; of rank `index` of `size`, GPU `index`, which becomes the current one.

    Raises ConfigError where there is none that will do, for any of the ranks.
    """
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device='cuda' needs a GPU, and PyTorch {torch.__version__} finds none: `scout doctor` says why, or set "
            "device to 'cpu'"
        )
    present = torch.cuda.device_count()
    if size > present:
        raise ConfigError(
            f"tensor_parallel_size={size} on device='cuda' needs a GPU for each rank, and PyTorch finds {present}: set "
            f"tensor_parallel_size to {present} or less, or device to 'cpu'"
        )
    if size > 1:
        torch.cuda.set_device(index)  # first of all: what comes next would take memory of GPU 0
    torch.cuda.init()  # type: ignore[no-untyped-call]
    own = torch.cuda.current_device()
    for gpu in range(size) if size > 1 else (own,):
        _check_capability(gpu)
    return torch.device("cuda", own)


def _check_capability(gpu: int) -> None:
    capability = torch.cuda.get_device_capability(gpu)
    if torch.version.hip is None and capability < OLDEST:
        raise ConfigError(
            f"GPU {gpu} has compute capability {capability[0]}.{capability[1]}, and its bfloat16 needs {OLDEST[0]}."
            f"{OLDEST[1]}: use a newer one, or set device to 'cpu'"
        )


def kernels_for(engine_config: EngineConfig, device: torch.device) -> KernelsName:
    """What "auto" is on a device."""
    if engine_config.kernels != "auto":
        return engine_config.kernels
    if device.type == "cpu":
        return "native"
    return "cuda" if torch.version.hip is None and has_cuda_core() else "triton"


def has_cuda_core() -> bool:
    """Whether the package that compiles CUDA kernels is installed."""
    return bool(importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.core"))


def with_kernels(decoder: Decoder, engine_config: EngineConfig, device: torch.device, workers: Workers) -> Decoder:
    """A decoder that computes rows with the kernels that a configuration asks for."""
    kernels = kernels_for(engine_config, device)
    if kernels in ("triton", "cuda"):
        most = FEW_ROWS if device.type == "cpu" else sys.maxsize  # the interpreter is slow
        return decoder.with_rows(import_module("scoutattention.kernels.triton.rows"), most=most)
    if kernels == "plain":
        return decoder.with_rows(reference_rows)
    many = reference_rows if decoder.dtype == torch.float16 else ManyRowKernels(workers)
    few = RowKernels(workers)
    return decoder.with_rows(few, many, whole=few)


def make_workers(engine_config: EngineConfig, cores: int, *, on_gpu: bool) -> Workers:
    """The threads that a configuration asks for; without it, one per core, of which a GPU's own work needs some.

    Raises ConfigError where there are fewer cores.
    """
    return Workers(engine_config.workers or max(1, cores - (SPARE_CORES if on_gpu else 0)))


def make_ops(engine_config: EngineConfig, device: torch.device, workers: Workers) -> Ops:
    """The kernels that a configuration asks for.

    Raises ConfigError where they do not run on the device, KernelError where Triton or cuda.core is missing.
    """
    kernels = kernels_for(engine_config, device)
    if kernels == "plain":
        return PlainOps(device)
    if kernels == "native":
        if device.type == "cuda":
            raise ConfigError("kernels='native' are for a CPU, and the device is a GPU: set kernels to 'auto'")
        return NativeOps(workers)
    module, name = ("triton", "TritonOps") if kernels == "triton" else ("cuda", "CudaOps")
    ops: Ops = getattr(import_module(f"scoutattention.kernels.{module}.ops"), name)(device)  # here: they are extras
    return ops


def make_transport(store: KVStore, *, ops: Ops, workers: Workers, scale: float) -> FarTransport:
    """What brings far attention to the CPU: from the main thread, or from the device's stream."""
    if not ops.deferred:
        return WorkerTransport(store.pages.pool, ops, workers, scale)
    return StreamTransport(store.pages.pool, ops, workers, scale, timeout_s=LONGEST_WAIT_S)


def free_memory(device: torch.device) -> int | None:
    """Bytes that the device can still give, and PyTorch may take of it; None where its memory is the host's."""
    if device.type == "cpu":
        return None
    free, total = torch.cuda.mem_get_info(device)
    allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    return max(0, min(free, allowed - torch.cuda.memory_reserved(device)))
