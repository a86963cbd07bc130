"""Decode steps on three clocks, the device's, the CPU's and the link's, in the order of the engine's own layers.

A layer goes as `attention/scout.py` has it: projections; the scouts of later layers, each of which calls the CPU; the
true query's choice; waiting for recall's copies; attention on the device; waiting for the CPU; feed-forward. A layer
that calls with its true query does so before it looks ahead. What is far differs from step to step and layer to layer.
Where a CPU is host and device at once, a far call and the device's work slow each other down; see `Cores`.
"""

import math
import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ..config import ScoutConfig
from ..trace.chrome import TICK_S
from ..trace.span import Span
from ..trace.timeline import DECODE, DEVICE, FAR, LINK, SCHEDULER, WAIT, Arrow, Timeline, worker
from .costs import FETCH_S
from .work import Costs, Design

QUARTERS = 4
"""Groups of layers that wait for recall's copies each by itself."""
SPREAD = 0.5
"""Deviation of the logarithm of a layer's CPU share in a step: an assumption."""
TRUE_QUERY_PART = 1 / 9
"""Layers whose scouts a prompt does not trust: 4 of 36 in the H100's runs, the first ones. On CPUs it was the first."""


@dataclass(frozen=True)
class Drift:
    """How far the chosen blocks run away from the slots.

    share: mean part of the chosen blocks that is absent.   spread: see `SPREAD`.   seed: of the random shares.
    """

    share: float
    spread: float = SPREAD
    seed: int = 0

    def steps(self, count: int, layers: int) -> Iterator[list[float]]:
        """The share of each layer in each of `count` steps."""
        draw = random.Random(self.seed).lognormvariate
        mean = math.log(self.share) - self.spread**2 / 2 if self.share else -math.inf
        for _ in range(count):
            yield [min(1.0, draw(mean, self.spread)) if self.share else 0.0 for _ in range(layers)]


def limited(steps: Iterable[Sequence[float]], most: float | None) -> list[list[float]]:
    """Shares of the layers in steps, all lowered alike where their mean is above a limit."""
    known = [list(step) for step in steps]
    mean = statistics.fmean(map(statistics.fmean, known))
    part = 1.0 if most is None or mean <= most else most / mean
    return [[share * part for share in step] for step in known]


@dataclass(frozen=True)
class Schedule:
    """Who does what when.   lookahead: layers.   own: layers that call the CPU with their true query.

    beside: whether fetched blocks are copied beside the device's work; the engine copies them between its kernels.
    """

    design: Design
    layers: int
    lookahead: int
    own: frozenset[int]
    beside: bool = False

    def targets(self, layer: int) -> list[int]:
        """The later layers whose scouts are made from a layer's input."""
        if self.design in ("full", "compute") or self.lookahead == 0:
            return []
        last = layer + self.lookahead
        return [t for t in range(1 if layer == 0 else last, last + 1) if t < self.layers and t not in self.own]


@dataclass
class Simulated:
    """Seconds of steps, and what they spent: lists with an entry for each step.

    waited: of the device, for the CPU or for copies.   unhidden: of these for the CPU.   hidden: of the CPU, behind
    other work.
    far, link: of the CPU and of the link at work.   spans: of the last step.
    """

    steps: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    hidden: list[float] = field(default_factory=list)
    unhidden: list[float] = field(default_factory=list)
    far: list[float] = field(default_factory=list)
    link: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    @property
    def step_s(self) -> float:
        """The median step."""
        return statistics.median(self.steps)

    def timeline(self) -> Timeline:
        """The last step as `scout trace` draws it: all of the CPU's workers are one lane."""
        if not self.spans:
            return Timeline(())
        far = {span.layer: span for span in self.spans if span.name == FAR}
        arrows = tuple(Arrow(far[span.layer], span) for span in self.spans if span.name == WAIT)
        return Timeline((Span(SCHEDULER, DECODE, None, 0.0, self.steps[-1]), *self.spans), arrows)

    @property
    def idle(self) -> float:
        """The part of the steps in which the device waits for the CPU or the link."""
        return sum(self.waited) / sum(self.steps)


def schedule_of(design: Design, layers: int, scout: ScoutConfig) -> Schedule:
    """The schedule of a design with the settings of the method."""
    wanted = scout.ablation.true_query_layers
    own = range({"compute": layers, "scout-slots": 1}.get(design, math.ceil(layers * TRUE_QUERY_PART)))
    lookahead = max(1, scout.lookahead) if design == "fetch-ahead" else scout.lookahead
    known = frozenset(own if wanted is None or design == "compute" else wanted) | {0}
    return Schedule(design, layers, lookahead, known if lookahead or design == "compute" else frozenset(range(layers)))


def simulate(costs: Costs, schedule: Schedule, shares: Iterable[Sequence[float]], *, traced: bool = False) -> Simulated:
    """Run a step for each list of the layers' CPU shares.   traced: whether the last step is kept as spans."""
    found = Simulated()
    for of_layers in shares:
        step = _Step(costs, schedule, of_layers, [] if traced else None)
        step.run()
        spent = step.spent
        found.steps.append(step.device)
        found.waited.append(spent.waited)
        found.far.append(spent.far)
        found.hidden.append(spent.hidden)
        found.unhidden.append(spent.unhidden)
        found.link.append(spent.link)
        found.shares.append(statistics.fmean(of_layers))
        found.spans = step.spans or []
    return found


@dataclass
class _Spent:
    """Seconds of one step, as `Simulated` has them of all."""

    waited: float = 0.0
    hidden: float = 0.0
    unhidden: float = 0.0
    far: float = 0.0
    link: float = 0.0


class _Step:
    """One step.   device, cpu, link: the three clocks.   ready, ran: when a layer's far part is there; its seconds."""

    def __init__(self, costs: Costs, schedule: Schedule, shares: Sequence[float], spans: list[Span] | None) -> None:
        self._costs, self._schedule, self._shares = costs, schedule, shares
        self.device = self._cpu = self._link = 0.0
        self.spent = _Spent()
        self._ready: dict[int, float] = {}
        self._ran: dict[int, float] = {}
        self.spans = spans

    def run(self) -> None:
        """Every layer, then the head."""
        layer_costs, schedule = self._costs.layer, self._schedule
        fetches, full = schedule.design == "fetch-ahead", schedule.design == "full"
        copies = [] if fetches or full or not layer_costs.recall else self._recall()
        for layer in range(schedule.layers):
            self._work("project", layer, layer_costs.before)
            own = layer in schedule.own and not full
            if not own:
                self._look_ahead(layer)
            elif schedule.design != "fetch-ahead" or schedule.lookahead:
                self._work("choose", layer, layer_costs.ahead)  # no scout's candidates: the true query scans
            self._work("choose", layer, layer_costs.judge)
            if own:
                self._call(layer)
                self._look_ahead(layer)
            if copies:
                self._wait("wait copies", layer, copies[layer * QUARTERS // schedule.layers])
            if fetches and layer in self._ready:
                self._wait("wait copies", layer, self._ready[layer])
            self._work("near", layer, layer_costs.near)
            if not fetches and layer in self._ready:
                self._take(layer)
            self._work("guard", layer, layer_costs.late)
            self._work("mlp", layer, layer_costs.after)
        self._work("head", None, self._costs.head)

    def _look_ahead(self, layer: int) -> None:
        for target in self._schedule.targets(layer):
            self._work("scout", target, self._costs.layer.ahead)
            self._call(target)

    def _call(self, layer: int) -> None:
        """Have the CPU attend to a layer's far blocks, or the link fetch them."""
        costs, share = self._costs.layer, self._shares[layer]
        if self._schedule.design == "fetch-ahead":
            start = max(self.device, self._link)
            self._link = start + FETCH_S + share * costs.fetch
            self.spent.link += self._link - start
            self._note(LINK, "fetch", layer, start, self._link)
            if self._schedule.beside:
                self._ready[layer] = self._link
            else:
                self._wait("wait copies", layer, self._link)
        elif costs.far_call or costs.far:
            start = max(self.device, self._cpu)
            self._cpu = start + (costs.far_call + share * costs.far) / self._costs.cores.beside
            self._ran[layer] = self._cpu - start
            self._note(worker(0), FAR, layer, start, self._cpu)
            self._ready[layer] = self._cpu

    def _take(self, layer: int) -> None:
        """Wait for a layer's call. Where host and device share cores, the device helps, and all later calls gain."""
        cores, before = self._costs.cores, self.spent.waited
        late = max(0.0, self._ready[layer] - self.device)
        gained = late * (1 - cores.beside / cores.helped)
        self._cpu -= gained
        self._ready = {of: end - gained if end >= self._ready[layer] else end for of, end in self._ready.items()}
        self._wait(WAIT, layer, max(self._ready[layer], self.device + cores.taken))
        ran, waited = self._ran[layer] - gained, self.spent.waited - before
        self.spent.far += ran
        self.spent.unhidden += waited
        self.spent.hidden += max(0.0, ran - waited)

    def _recall(self) -> list[float]:
        """When the copies of each quarter of the layers are done, which begin with the step."""
        layers, each = self._schedule.layers, self._costs.layer.recall
        ends = []
        for quarter in range(QUARTERS):
            count = -(-(quarter + 1) * layers // QUARTERS) - -(-quarter * layers // QUARTERS)
            start, self._link = self._link, self._link + count * each
            self.spent.link += self._link - start
            self._note(LINK, "recall", None, start, self._link)
            ends.append(self._link)
        return ends

    def _work(self, name: str, layer: int | None, seconds: float) -> None:
        if seconds > 0:
            start, slowed = self.device, self._costs.cores.slowed
            beside = min(max(0.0, self._cpu - start), seconds / slowed)  # while a far call runs
            self.device += seconds + beside * (1 - slowed)
            self._note(DEVICE, name, layer, start, self.device)

    def _wait(self, name: str, layer: int, until: float) -> None:
        start = self.device
        self.device = max(until, start + TICK_S if name == WAIT else start)  # that the CPU was not late is a span too
        self.spent.waited += self.device - start
        if self.device > start:
            self._note(DEVICE, name, layer, start, self.device)

    def _note(self, who: str, name: str, layer: int | None, start: float, end: float) -> None:
        if self.spans is not None:
            self.spans.append(Span(who, name, layer, start, end))
