"""Predictions beside steps that a benchmark measured on the same computer."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..cache.memory_plan import SLOTS_PER_BUDGET
from ..config import KVDTypeName, ScoutConfig
from ..errors import ConfigError
from ..shape import DTYPE_BYTES, NamedShape
from .computers import Computer
from .costs import costs_of
from .cpu_costs import late_part
from .explore import Shares
from .planner import work_of
from .simulator import Drift, limited, schedule_of, simulate
from .work import Design, Work

ON_CPU: Mapping[str, Design] = {"dense": "full", "full": "full", "scout": "scout", "scout-slots": "scout-slots"}
ON_GPU: Mapping[str, Design] = {
    "full": "full",
    "compute": "compute",
    "fetch-ahead": "fetch-ahead",
    "scout": "scout",
    "scout-plain": "scout",
}
"""What benchmarks call the designs that are predicted, of a computer without a GPU and of one with it."""
METHOD = ("budget", "lookahead", "max_cpu_share")
"""Settings of the method that a file of `scout bench decode` gives."""
QUANTITIES = ("step", "hidden", "unhidden", "share")


class Prompted(NamedTuple):
    """What a recording is of: tokens of the prompt, and of the budget."""

    context: int
    budget: int | None


class Pair(NamedTuple):
    """A measured value and the predicted one: seconds of a step, or a share."""

    measured: float
    predicted: float

    @property
    def error(self) -> float | None:
        """Of the prediction, as a part of what was measured; None where that is nothing."""
        return self.predicted / self.measured - 1 if self.measured else None


class Compared(NamedTuple):
    """A measured case.   setting: what its file gives of the method.   pairs: of those `QUANTITIES` that were measured.

    step: seconds.   hidden, unhidden: seconds that the CPU worked behind the device's work, and was waited for, in a
    step.   share: CPU share.
    """

    engine: str
    context: int
    batch: int
    setting: str
    pairs: Mapping[str, Pair]


@dataclass(frozen=True)
class Comparison:
    """Measured cases, and the engines that are not predicted."""

    cases: tuple[Compared, ...]
    unknown: tuple[str, ...]

    def median_error(self, of: str) -> float | None:
        """The median size of the errors of one of `QUANTITIES`; None where it was not measured."""
        pairs = [case.pairs[of] for case in self.cases if of in case.pairs]
        errors = [abs(pair.error) for pair in pairs if pair.error is not None]
        return statistics.median(errors) if errors else None

    def median_part(self, of: str) -> float | None:
        """The same of a time, as a part of the measured step."""
        both = [(case.pairs[of], case.pairs["step"]) for case in self.cases if of in case.pairs]
        parts = [abs(pair.predicted - pair.measured) / step.measured for pair, step in both]
        return statistics.median(parts) if parts else None


@dataclass(frozen=True)
class Report:
    """What a benchmark wrote.

    method: the settings that it gives, see `METHOD`.   slots: of a sequence, as a multiple of the budget.
    steps: after the prompt, those that count.   dtype: of the cache; None where it does not say.
    """

    file: Path
    cases: Sequence[Mapping[str, Any]]
    kv_dtype: KVDTypeName
    method: Mapping[str, Any]
    slots: float
    steps: slice
    dtype: str | None

    def scout(self, scout: ScoutConfig) -> ScoutConfig:
        """The settings of the method that it ran with: its own, and others from `scout`."""
        return replace(scout, **self.method)


def read_report(file: Path) -> Report:
    """What a benchmark wrote. Raises ConfigError where the file has no cases."""
    made = "write one with `scout bench decode MODEL --json` or `scout bench gpu MODEL --json`"
    try:
        report = json.loads(file.read_bytes())
        cases = [dict(case) for case in report["cases"]]
        for case in cases:
            case["step_s"] = float(case["ms_per_step"]) / 1e3
            case["context"], case["batch"] = int(case["context"]), int(case["batch"])
            if not str(case["engine"]) or min(case["step_s"], case["context"], case["batch"]) <= 0:
                raise ValueError("a case is empty")
        method = {name: value for name, value in report.get("method", {}).items() if name in METHOD}
        slots = float(report.get("slots", SLOTS_PER_BUDGET))
        steps = slice(*(int(number) for number in report["steps"])) if "steps" in report else slice(None)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} has no measured cases: {made}") from error
    dtype = cases[0].get("cache_dtype") if cases else None
    return Report(file, cases, report.get("kv_dtype", "auto"), method, slots, steps, dtype)


def compare(
    reports: Iterable[Report],
    model: NamedShape,
    scout: ScoutConfig,
    computer: Computer,
    recordings: Mapping[Prompted, Shares],
) -> Comparison:
    """What benchmarks measured, beside predictions.

    scout: settings of the method that a report does not give.
    recordings: CPU shares. A single recording is for all cases; of several each case takes that of its prompt.
    Raises ConfigError where nothing was measured that is predicted, or several recordings lack one of a case.
    """
    known = ON_CPU if computer.card is None else ON_GPU
    found, unknown, files = [], [], []
    for report in reports:
        files.append(str(report.file))
        for case in report.cases:
            design = known.get(case["engine"])
            if design is None:
                unknown.append(case["engine"])
                continue
            work = _work(case, report, model, scout)
            work = work._replace(kv_dtype="auto" if design == "full" else report.kv_dtype)
            far = design in ("compute", "scout") if computer.card is not None else _has_far(design, work)
            steps = _shares(work, recordings if far else {}, report.steps)
            found.append(_compared(case, design, work, computer, steps))
    if not found:
        raise ConfigError(
            f"{', '.join(files)} has none of the engines that are predicted for {computer.name}: {', '.join(known)}"
        )
    return Comparison(tuple(found), tuple(dict.fromkeys(unknown)))


def _work(case: Mapping[str, Any], report: Report, model: NamedShape, scout: ScoutConfig) -> Work:
    """What a case decoded, in the dtype that the report gives."""
    shape = replace(model.shape, dtype=report.dtype) if report.dtype in DTYPE_BYTES else model.shape
    work = work_of(model._replace(shape=shape), report.scout(scout), case["context"])
    return work._replace(batch=case["batch"], slots=report.slots)


def _has_far(design: Design, work: Work) -> bool:
    """Whether a CPU that is the device attends to far blocks."""
    return design == "scout-slots" and work.has_absent


def _shares(work: Work, recordings: Mapping[Prompted, Shares], counted: slice) -> list[list[float]]:
    """The CPU shares of the layers in the steps of a case."""
    layers, scout, prompt = work.shape.num_layers, work.scout, Prompted(work.context, work.scout.budget)
    if not recordings:
        return list(Drift(work.share, spread=0.0).steps(1, layers))
    if len(recordings) > 1 and prompt not in recordings:
        raise ConfigError(
            f"no --drift is a recording of {prompt.context} tokens with a budget of {prompt.budget}: make one with "
            f"`scout eval fidelity MODEL --context {prompt.context} --budget {prompt.budget} --record FILE`"
        )
    shares = recordings[prompt] if prompt in recordings else next(iter(recordings.values()))
    steps = list(shares(scout, layers, work.slots / SLOTS_PER_BUDGET))
    return limited(steps[counted] or steps, scout.max_cpu_share)


def _compared(
    case: Mapping[str, Any], design: Design, work: Work, computer: Computer, steps: Sequence[Sequence[float]]
) -> Compared:
    work = work._replace(drift=statistics.fmean(map(statistics.fmean, steps)))
    costs = costs_of(design, work, computer)
    step = simulate(costs, schedule_of(design, work.shape.num_layers, work.scout), steps)
    predicted = {
        "step": step.step_s,
        "hidden": statistics.median(step.hidden),
        "unhidden": statistics.median(step.unhidden),
        "share": _counted_share(design, work, computer),
    }
    names = {"step": "step_s", "hidden": "hidden_ms", "unhidden": "unhidden_ms", "share": "share"}
    pairs = {}
    for quantity, name in names.items():
        if case.get(name) is not None:
            measured = float(case[name]) / (1e3 if name.endswith("_ms") else 1)
            pairs[quantity] = Pair(measured, predicted[quantity])
    return Compared(case["engine"], case["context"], case["batch"], _setting(work), pairs)


def _counted_share(design: Design, work: Work, computer: Computer) -> float:
    """The CPU share as the engine counts it: blocks that the guard attends to again count again."""
    if computer.card is not None:
        return work.share if design in ("compute", "scout") else 0.0
    if not _has_far(design, work):
        return 0.0
    late = late_part(work)
    return min((work.share + late) / (1 + late), work.scout.max_cpu_share or 1.0)


def _setting(work: Work) -> str:
    scout = work.scout
    limit = "no limit" if scout.max_cpu_share is None else f"limit {scout.max_cpu_share:g}"
    return f"{work.shape.dtype}, budget {scout.budget:,}, lookahead {scout.lookahead}, slots {work.slots:g}x, {limit}"
