"""What the GPU benchmark runs, and what it reports."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from ..config import EngineConfig, Memory, ScoutConfig

TRACED = 3
"""Steps that follow the timed ones, to see when the device works."""


class Rival(NamedTuple):
    """A design of the field, as settings.   fetch_all: attends as `FetchAllAttention` does, to everything."""

    name: str
    scout: ScoutConfig
    device_memory: Memory = "slots"
    fetch_all: bool = False


def rivals(base: ScoutConfig) -> tuple[Rival, ...]:
    """Full attention on the device; blocks fetched (asked for, ahead, or all), or computed by the CPU."""
    plain = replace(base, predictor="plain", calibration=None)
    return (
        Rival("full", replace(plain, budget=None), "all"),
        Rival("fetch", replace(plain, on_miss="fetch", lookahead=0)),
        Rival("fetch-ahead", replace(plain, on_miss="fetch")),
        Rival("fetch-all", plain, fetch_all=True),
        Rival("compute", replace(plain, lookahead=0, far_query="true")),
        Rival("scout-plain", plain),
        Rival("scout", replace(plain, predictor="calibrated")),
    )


@dataclass(frozen=True)
class Plan:
    """What to run.

    contexts, batches: every pair is a case; once a case of an engine does not fit, its larger batches are left out.
    warm_up, steps: of each engine in each case, not counted and counted.   machine: with the host's memory.
    """

    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    machine: EngineConfig
    warm_up: int = 16
    steps: int = 32

    @property
    def more(self) -> int:
        """Tokens that a sequence gets."""
        return self.warm_up + self.steps + TRACED


class Result(NamedTuple):
    """One engine in one case.

    ms_per_step: median of the counted steps.   tokens_per_s: of all of them, those that close blocks too.
    device_idle_share: of a median step, the part in which no kernel ran; None without a GPU.
    hidden_ms, unhidden_ms, link_bytes: means over the steps: the CPU's attention that ran behind other work, and that
        was waited for; what was copied from host pages to the device.
    share: of the chosen blocks, those that the device did not hold.
    """

    engine: str
    context: int
    batch: int
    ms_per_step: float
    tokens_per_s: float
    device_idle_share: float | None
    hidden_ms: float
    unhidden_ms: float
    link_bytes: float
    share: float


class LeftOut(NamedTuple):
    """An engine that did not run a case, or larger batches, and why."""

    engine: str
    context: int
    batch: int
    why: str


class Measured(NamedTuple):
    """Everything that ran, and what did not."""

    results: list[Result]
    left_out: list[LeftOut]
