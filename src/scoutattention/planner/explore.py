"""What one setting does to a plan: simulated steps with one value of it after another, all else as it is."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..cache.memory_plan import SLOTS_PER_BUDGET
from ..config import ScoutConfig
from .computers import Computer
from .costs import costs_of
from .memory import largest_batch, needs_of
from .simulator import Drift, limited, schedule_of, simulate
from .work import Work

Shares = Callable[[ScoutConfig, int, float], Iterable[Sequence[float]]]
"""`residency.recorded_shares` of a recording: of settings, a number of layers, and slots as part of the usual ones."""

STEPS = 64
LOOKAHEADS = (0, 1, 2, 4)
BUDGETS = (1, 2, 4)
"""As multiples of the budget that is asked for."""
DIGESTS = ("two-stage", "keys2", "minmax")
SLOTS = (1.0, 2.0, 4.0)
RECALLS = (0, 2, 4, 8, 16)


@dataclass(frozen=True)
class Explored:
    """A value of a setting, and the predicted steps with it.   usual: whether the plan has this value.

    batch: sequences; 0 if not even one fits.   step_s, idle, cpu_share, far_s: means over the steps; see `planner.Row`.
    absent: blocks without a slot, as a part of the chosen blocks. The CPU attends to `cpu_share`, and the rest is left
        out.   device: bytes of GPU memory.
    """

    setting: str
    value: str
    usual: bool
    batch: int
    step_s: float
    idle: float
    absent: float
    cpu_share: float
    far_s: float
    device: int

    @property
    def tokens_per_s(self) -> float:
        """Of all sequences together."""
        return self.batch / self.step_s if self.batch else 0.0


def explore(work: Work, computer: Computer, batch: int | None, shares: Shares | None) -> list[Explored]:
    """Each setting's values on a computer with a GPU.

    batch: None is the most sequences that fit, with each value.
    shares: of a recording. Without one, slots and recall are left out: nothing tells what they leave to the CPU.
    """
    return [
        _explored(setting, value, tried, computer, batch, shares or _drifting(tried), usual=tried == work)
        for setting, value, tried in _variants(work, recorded=shares is not None)
    ]


def _drifting(work: Work) -> Shares:
    return lambda _scout, layers, _slots: Drift(work.share).steps(STEPS, layers)


def _explored(
    setting: str, value: str, work: Work, computer: Computer, batch: int | None, shares: Shares, *, usual: bool
) -> Explored:
    most, layers = largest_batch("scout", work, computer), work.shape.num_layers
    shown = min(most, batch or most)
    work = work._replace(batch=max(1, shown))
    steps = list(shares(work.scout, layers, work.slots / SLOTS_PER_BUDGET))
    absent = statistics.fmean(map(statistics.fmean, steps))
    attended = limited(steps, work.scout.max_cpu_share)
    share = statistics.fmean(map(statistics.fmean, attended))
    costs = costs_of("scout", work, computer)
    found = simulate(costs, schedule_of("scout", layers, work.scout), attended)
    return Explored(
        setting=setting,
        value=value,
        usual=usual,
        batch=shown,
        step_s=statistics.fmean(found.steps),
        idle=found.idle,
        absent=absent,
        cpu_share=share,
        far_s=costs.layer.far_call + share * costs.layer.far,
        device=needs_of("scout", work, computer).device,
    )


def _variants(work: Work, *, recorded: bool) -> Iterator[tuple[str, str, Work]]:
    """Names of settings, their values, and what is then to be decoded; the plan's own value is among them."""
    scout = work.scout
    for layers in sorted({*LOOKAHEADS, scout.lookahead}):
        yield "lookahead", str(layers), work._replace(scout=replace(scout, lookahead=layers))
    for part in BUDGETS:
        budget = part * (scout.budget or 0)
        yield "budget", str(budget), work._replace(scout=replace(scout, budget=budget))
    for digest in DIGESTS:
        yield "digest", digest, work._replace(scout=scout.changed(digest=digest))
    if not recorded:
        return
    for slots in sorted({*SLOTS, work.slots}):
        yield "slots", f"{slots:g} x budget", work._replace(slots=slots)
    for interval in sorted({*RECALLS, scout.ablation.recall_interval}):
        steps = f"every {interval} steps" if interval else "never"
        yield "recall", steps, work._replace(scout=scout.changed(recall_interval=interval))
