"""Predictions beside steps that a benchmark measured on the same computer."""

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import KVDTypeName, ScoutConfig
from ..errors import ConfigError
from ..shape import NamedShape
from .computers import Computer
from .costs import Design
from .planner import predict, work_of

ENGINES: Mapping[str, Design] = {
    "dense": "full",
    "full": "full",
    "compute": "compute",
    "fetch-ahead": "fetch-ahead",
    "scout": "scout",
    "scout-plain": "scout",
}
"""What benchmarks call the designs that are predicted. Without a GPU only `full` and `scout` are."""


@dataclass(frozen=True)
class Compared:
    """A measured case.   step_s, predicted_s: of a step.

    waited_s, far_s: that the device waited for the CPU, and that the CPU worked; None where that was not measured.
    """

    engine: str
    context: int
    batch: int
    step_s: float
    predicted_s: float
    waited_s: float | None
    predicted_waited_s: float
    far_s: float | None
    predicted_far_s: float

    @property
    def error(self) -> float:
        """Of the predicted step, as a part of the measured one."""
        return self.predicted_s / self.step_s - 1


@dataclass(frozen=True)
class Comparison:
    """Measured cases, and the engines that are not predicted."""

    cases: tuple[Compared, ...]
    unknown: tuple[str, ...]

    @property
    def median_error(self) -> float:
        """The median size of the errors of steps."""
        return statistics.median(abs(case.error) for case in self.cases)


def read_cases(file: Path) -> tuple[list[dict[str, Any]], KVDTypeName]:
    """The cases that a benchmark wrote, and the number format of pages. Raises ConfigError where the file has none."""
    made = "write one with `scout bench decode MODEL --json` or `scout bench gpu MODEL --json`"
    try:
        report = json.loads(file.read_bytes())
        cases = [dict(case) for case in report["cases"]]
        for case in cases:
            case["step_s"] = float(case["ms_per_step"]) / 1e3
            case["context"], case["batch"] = int(case["context"]), int(case["batch"])
            if not str(case["engine"]) or min(case["step_s"], case["context"], case["batch"]) <= 0:
                raise ValueError("a case is empty")
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} has no measured cases: {made}") from error
    return cases, report.get("kv_dtype", "auto")


def compare(
    file: Path, model: NamedShape, scout: ScoutConfig, computer: Computer, drift: float | None = None
) -> Comparison:
    """What a benchmark measured, beside predictions.   scout: the settings that it ran with.   drift: see `Work`.

    Raises ConfigError where the file has no cases, or none that is predicted.
    """
    cases, kv_dtype = read_cases(file)
    known = ENGINES if computer.card is not None else {name: ENGINES[name] for name in ("dense", "full", "scout")}
    found = []
    for case in cases:
        if case["engine"] in known:
            design = known[case["engine"]]
            work = work_of(model, scout, case["context"])._replace(
                batch=case["batch"], drift=drift, kv_dtype="auto" if design == "full" else kv_dtype
            )
            step = predict(design, work, computer)
            found.append(_compared(case, step.step_s, step.waited[0], step.far[0]))
    unknown = tuple(dict.fromkeys(case["engine"] for case in cases if case["engine"] not in known))
    if not found:
        raise ConfigError(f"{file} has none of the engines that are predicted for {computer.name}: {', '.join(known)}")
    return Comparison(tuple(found), unknown)


def _compared(case: Mapping[str, Any], step_s: float, waited_s: float, far_s: float) -> Compared:
    hidden, waited = _seconds(case, "hidden_ms"), _seconds(case, "unhidden_ms")
    return Compared(
        engine=case["engine"],
        context=case["context"],
        batch=case["batch"],
        step_s=case["step_s"],
        predicted_s=step_s,
        waited_s=waited,
        predicted_waited_s=waited_s,
        far_s=None if hidden is None or waited is None else hidden + waited,
        predicted_far_s=far_s,
    )


def _seconds(case: Mapping[str, Any], name: str) -> float | None:
    return None if case.get(name) is None else float(case[name]) / 1e3
