"""The cases of the GPU benchmark, and their results."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ...config import EngineConfig, KVDTypeName, Memory, ScoutConfig

TRACED = 3
"""Steps after the timed ones, in which a profiler sees when the device works; and those of a timeline."""
AS_MANY, MOST_AT_ONCE = 0, 512
"""A batch of as many sequences as fit, by the engine's own plan; and how many are looked for at most."""
STEPS, QUICK_STEPS = (16, 32), (8, 16)
"""Steps of a run, and of a quick run: not counted, and counted."""


class Rival(NamedTuple):
    """Another design, as settings of this engine, or another program.

    fetch_all: it attends with `FetchAllAttention`.   cache: that of Hugging Face's transformers, which runs instead.
    """

    name: str
    scout: ScoutConfig
    device_memory: Memory = "slots"
    fetch_all: bool = False
    cache: Literal["full", "offloaded"] | None = None

    def kv_dtype(self, wanted: KVDTypeName) -> KVDTypeName:
        """The number format of its pages: the wanted one, where they are in host memory and the CPU may read them."""
        return wanted if self.device_memory == "slots" and not self.fetch_all else "auto"

    def store(self, wanted: KVDTypeName = "auto") -> Hashable:
        """Equal for rivals that can share a store; full attention keeps no digests.   wanted: see `kv_dtype`."""
        return self.device_memory, self.scout.budget is None, self.kv_dtype(wanted), self.cache


def rivals(base: ScoutConfig) -> tuple[Rival, ...]:
    """Full attention and rival designs, then scout without and with corrections.

    Two rivals keep everything on the device; three copy absent blocks there; one computes in the same layer.
    """
    plain = base.changed(predictor="plain", calibration=None)
    return (
        Rival("full", plain.changed(budget=None), "all"),
        Rival("resident", plain, "all"),
        Rival("fetch", plain.changed(on_miss="fetch", lookahead=0)),
        Rival("fetch-ahead", plain.changed(on_miss="fetch")),
        Rival("fetch-all", plain, fetch_all=True),
        Rival("compute", plain.changed(lookahead=0, far_query="true")),
        Rival("scout-plain", plain),
        Rival("scout", plain.changed(predictor="calibrated")),
    )


def other_programs(base: ScoutConfig) -> tuple[Rival, ...]:
    """Hugging Face's transformers, with its cache on the device and in host memory. They make no use of settings."""
    return (
        Rival("transformers", base, cache="full"),
        Rival("transformers-offloaded", base, cache="offloaded"),
    )


@dataclass(frozen=True)
class Workload:
    """What to run.

    contexts, batches: each pair is a case; the first context is the first to run. A batch may be `AS_MANY`.
    engine_config: the settings that all engines share, with the size of the host's memory. Its kv_dtype is for rivals
        with pages in host memory, see `Rival.kv_dtype`.
    device_limit: bytes of the device that may be taken, or None for all.
    engines: names of those that run, or None for all.
    warm_up, steps: decode steps of each engine in each case at most; the warm-up is not counted.
    traced: whether timelines are recorded of each engine's first case, in more steps.
    """

    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    engine_config: EngineConfig
    warm_up: int = STEPS[0]
    steps: int = STEPS[1]
    device_limit: int | None = None
    engines: tuple[str, ...] | None = None
    traced: bool = False

    @property
    def more(self) -> int:
        """New tokens that a sequence gets at most."""
        return self.warm_up + self.steps + TRACED * (1 + self.traced)


class Kernel(NamedTuple):
    """All kernels, or copies, of one name in a mean step.   ms: their time.   launches: how many."""

    name: str
    ms: float
    launches: float
    copies: bool


class Result(NamedTuple):
    """One engine in one case.

    steps: counted decode steps. Of an engine that captures steps, those that it replayed: it queues a step kernel by
        kernel, and captures it, once for many replays.
    ms_per_step: the median step.   tokens_per_s: by the mean step.
    device_idle_share: part of a median step in which no kernel ran, not even one that waits for the CPU; None where the
        profiler saw no GPU.
    hidden_ms, unhidden_ms: CPU attention in a mean step that ran behind other work, and that was waited for.
    link_bytes: bytes that a mean step copied from host pages to the device.
    share: chosen blocks that the device did not hold, as a part of all chosen blocks.
    kernels: what the device ran in a step, by name; empty where the profiler saw no GPU.
    """

    engine: str
    context: int
    batch: int
    steps: int
    ms_per_step: float
    tokens_per_s: float
    device_idle_share: float | None
    hidden_ms: float
    unhidden_ms: float
    link_bytes: float
    share: float
    kernels: tuple[Kernel, ...] = ()

    def as_json(self, *, kernels: bool = False) -> dict[str, object]:
        """The fields by name; `kernels` only where they are asked for, because they are many."""
        fields = self._asdict()
        named = [kernel._asdict() for kernel in fields.pop("kernels")]
        return fields | {"kernels": named} if kernels else fields

    def per_layer(self, layers: int, *, copies: bool) -> float:
        """Kernels, or copies, that a step launched for each of its layers."""
        return sum(kernel.launches for kernel in self.kernels if kernel.copies == copies) / layers


class LeftOut(NamedTuple):
    """An engine that did not run a case.   why: "memory: ..." or "failed: ..."."""

    engine: str
    context: int
    batch: int
    why: str

    @property
    def failed(self) -> bool:
        """Whether the engine failed for another reason than memory."""
        return self.why.startswith("failed")


class Measured(NamedTuple):
    """The results, what was left out, and how many cases were not started for want of time."""

    results: list[Result]
    left_out: list[LeftOut]
    not_started: int

    @property
    def smallest_left_out(self) -> list[LeftOut]:
        """For each engine and context: the smallest batch without memory, and the smallest that failed."""
        falling = sorted(self.left_out, key=lambda left: -left.batch)
        return list({(left.engine, left.context, left.failed): left for left in falling}.values())
