"""What the host offers, read from the kernel's files. No PyTorch; folders are arguments, so tests can fake them."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

NO_LIMIT = 1 << 60  # bytes: version 1 of cgroups writes a number of this order where there is no limit


@dataclass(frozen=True)
class Host:
    """Where to look, and which cores the scheduler lets this process use (None asks it)."""

    proc: Path = Path("/proc")
    cgroup: Path = Path("/sys/fs/cgroup")
    affinity: int | None = None


@dataclass(frozen=True)
class Cores:
    """Cores of the host, of this process's affinity mask, and the container's quota in cores, if it has one."""

    present: int
    allowed: int
    quota: float | None

    @property
    def usable(self) -> int:
        """Threads that can run at once without being throttled, at least 1."""
        return self.allowed if self.quota is None else max(1, min(self.allowed, math.floor(self.quota)))


@dataclass(frozen=True)
class Memory:
    """Bytes of memory: of the host, free on it, and what the container may use and uses (None: no limit)."""

    total: int
    available: int
    limit: int | None
    used: int | None

    @property
    def usable(self) -> int:
        """Bytes that can still be taken."""
        if self.limit is None or self.used is None:
            return self.available
        return max(0, min(self.available, self.limit - self.used))


def _text(path: Path) -> str | None:
    """What `path` holds, or None where it is absent or may not be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _fields(text: str | None) -> dict[str, str]:
    """The first value of each `name: value` line."""
    found: dict[str, str] = {}
    for line in (text or "").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found


def _cgroup_folders(host: Host, controller: str) -> list[Path]:
    """Folders that may limit this process, innermost first, for either version of cgroups."""
    folders: list[Path] = []
    for line in (_text(host.proc / "self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            bases = [host.cgroup, host.cgroup / "unified"]
        elif controller in controllers.split(","):
            bases = [host.cgroup / controller, host.cgroup / controllers]
        else:
            continue
        inner = Path(path.lstrip("/"))
        folders += [base / part for base in bases for part in (inner, *inner.parents)]
    return list(dict.fromkeys(folders))


def _number(path: Path) -> int | None:
    text = (_text(path) or "").strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _quota(folder: Path) -> float | None:
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    both = (_text(folder / "cpu.max") or "").split()
    if len(both) == 2 and both[0] != "max":
        quota, period = int(both[0]), int(both[1])
    return quota / period if quota and period and quota > 0 else None


def _limit_and_use(folder: Path) -> tuple[int, int] | None:
    """A memory limit and what counts against it, without file caches that the kernel gives up on demand; in bytes."""
    for limit_name, used_name in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        limit = _number(folder / limit_name)
        if limit is not None and limit < NO_LIMIT:
            counts = _fields((_text(folder / "memory.stat") or "").replace(" ", ":"))
            cached = int(counts.get("total_inactive_file") or counts.get("inactive_file", "0"))
            return limit, max(0, (_number(folder / used_name) or 0) - cached)
    return None


def read_cores(host: Host) -> Cores:
    """Cores that exist, that this process may use, and the tightest quota of its container."""
    cpuinfo = _text(host.proc / "cpuinfo") or ""
    present = sum(line.startswith("processor") for line in cpuinfo.splitlines())
    allowed = len(os.sched_getaffinity(0)) if host.affinity is None else host.affinity
    quotas = [quota for folder in _cgroup_folders(host, "cpu") if (quota := _quota(folder)) is not None]
    return Cores(present or allowed, allowed, min(quotas, default=None))


def read_memory(host: Host) -> Memory:
    """Memory of the host, and the tightest limit of the container."""
    meminfo = _fields(_text(host.proc / "meminfo"))
    total, available = (int(meminfo.get(name, "0 kB").split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    limits = [found for folder in _cgroup_folders(host, "memory") if (found := _limit_and_use(folder)) is not None]
    limit, used = min(limits, key=lambda found: found[0] - found[1], default=(None, None))
    return Memory(total, available, limit, used)


def usable_cores(host: Host | None = None) -> int:
    """Threads that can run at once without being throttled, at least 1."""
    return read_cores(host or Host()).usable


def available_memory(host: Host | None = None) -> int:
    """Bytes of memory that this process can still take."""
    return read_memory(host or Host()).usable


def resident_memory(host: Host | None = None) -> int:
    """Bytes of memory that this process has now, files that it has mapped and read included."""
    return int(_fields(_text((host or Host()).proc / "self/status")).get("VmRSS", "0 kB").split()[0]) * 1024


def peak_memory(host: Host | None = None) -> int:
    """The most bytes of memory that this process has had."""
    return int(_fields(_text((host or Host()).proc / "self/status")).get("VmHWM", "0 kB").split()[0]) * 1024


def read_cpu(host: Host) -> tuple[str, frozenset[str]]:
    """The CPU's name and its feature flags, as the kernel spells them."""
    cpuinfo = _fields(_text(host.proc / "cpuinfo"))
    name = cpuinfo.get("model name") or cpuinfo.get("CPU implementer", "unknown")
    return name, frozenset((cpuinfo.get("flags") or cpuinfo.get("Features", "")).split())


def read_gpu_driver(host: Host) -> str | None:
    """The first line of the NVIDIA driver's version file, or None where there is no driver."""
    text = _text(host.proc / "driver/nvidia/version")
    return None if text is None else text.strip().splitlines()[0].removeprefix("NVRM version:").strip()
