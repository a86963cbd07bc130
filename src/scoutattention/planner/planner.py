"""Plans: what fits on a computer, how fast each design decodes there, where the break-even lies, and what to run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..config import KVDTypeName, ScoutConfig
from ..errors import CapacityError
from ..shape import NamedShape
from ..trace.timeline import Timeline
from .computers import GIB, Computer
from .costs import costs_of
from .memory import largest_batch, missing, needs_of, room_of
from .simulator import Drift, Simulated, schedule_of, simulate
from .work import DESIGNS, Design, Work, weight_bytes

GAIN = 1.1
"""How many times as fast packed pages must make a plan to be recommended: they cost some accuracy."""
AHEAD_GAIN = 1.05
"""The same of one more layer of lookahead."""
LOOKAHEADS = (1, 2, 3, 4)
CONTEXTS = tuple(1 << power for power in range(11, 21))
"""Contexts that are tried for a break-even: 2,048 to 1,048,576 tokens."""
KV_DTYPES: tuple[KVDTypeName, ...] = ("auto", "int8", "int4")


@dataclass(frozen=True)
class Row:
    """A design in one case.   context: prompt and answer in tokens.   batch: 0 where not even one sequence fits.

    step_s: of a step; window_s: that the CPU has for a layer, and far_s: that it takes.   idle: part of a step in which
    the device waits.   device, host: bytes that are needed, of one sequence where none fits, and by how many it misses.
    """

    design: Design
    kv_dtype: KVDTypeName
    context: int
    batch: int
    largest: int
    step_s: float
    idle: float
    cpu_share: float
    window_s: float
    far_s: float
    device: int
    host: int
    missing_device: int
    missing_host: int

    @property
    def tokens_per_s(self) -> float:
        """Of all sequences together."""
        return self.batch / self.step_s if self.batch else 0.0

    @property
    def engine(self) -> str:
        """What tables and plots call it."""
        return self.design if self.kv_dtype == "auto" else f"{self.design}, {self.kv_dtype}"

    @property
    def ms_per_step(self) -> float:
        """Of a step."""
        return self.step_s * 1e3


class BreakEven(NamedTuple):
    """Where scout begins to pay, for one context.

    batch: the least with which it decodes more tokens per second than full attention at its largest; None if none does.
    full_needs, scout_needs: bytes of device memory below which not one sequence runs; of the host's, without a GPU.
    """

    context: int
    batch: int | None
    full_needs: int
    scout_needs: int


@dataclass(frozen=True)
class Recommended:
    """The fastest choice for a context: full attention, or scout with these settings."""

    design: Design
    context: int
    batch: int
    kv_dtype: KVDTypeName
    lookahead: int
    tokens_per_s: float
    host_memory: int


@dataclass(frozen=True)
class Plan:
    """A plan.

    pays_from: the least context at which scout's best batch beats full attention's best; None where none does.
    recommended: for each context what decodes most tokens per second; alone: the same for one sequence at a time.
    """

    model: NamedShape
    computer: Computer
    scout: ScoutConfig
    rows: tuple[Row, ...]
    break_even: tuple[BreakEven, ...]
    pays_from: int | None
    recommended: tuple[Recommended, ...]
    alone: tuple[Recommended, ...]
    drift: float | None = None


def make_plan(
    model: NamedShape,
    computer: Computer,
    scout: ScoutConfig,
    contexts: Sequence[int],
    batches: Sequence[int] = (),
    drift: float | None = None,
) -> Plan:
    """A plan for a model.   batches: to predict; without, each design's largest.   drift: see `Work`.

    Raises CapacityError where the weights alone do not fit.
    """
    check_weights(model, computer)
    cases = [work_of(model, scout, context)._replace(drift=drift) for context in contexts]
    rows = tuple(row for work in cases for batch in batches or (None,) for row in _rows(work, computer, batch))
    return Plan(
        model=model,
        computer=computer,
        scout=scout,
        rows=rows,
        break_even=tuple(_break_even(work, computer) for work in cases),
        pays_from=_pays_from(cases[0], computer),
        recommended=tuple(best for work in cases if (best := recommend(work, computer)) is not None),
        alone=tuple(best for work in cases if (best := recommend(work, computer, batch=1)) is not None),
        drift=drift,
    )


def check_weights(model: NamedShape, computer: Computer) -> None:
    """Raises CapacityError, with what is missing, where a computer cannot hold a model's weights."""
    weights, room = weight_bytes(work_of(model, ScoutConfig(), 1), computer), room_of(computer)
    has = room.host if computer.card is None else room.device
    if weights > has:
        knobs = ["a smaller model"]
        knobs += ["dtype (--dtype) bfloat16"] if model.shape.dtype == "float32" and model.weights is None else []
        knobs += ["weights (--weights) int4"] if computer.card is None and model.weights is None else []
        kept = model.shape.dtype if computer.card is not None or model.weights is None else "few bits"
        raise CapacityError(
            f"the weights of {model.name} take {weights / GIB:.1f} GiB in {kept}, and {computer.name} has "
            f"{has / GIB:.1f} GiB for them: {(weights - has) / GIB:.1f} GiB are missing, so take {', '.join(knobs)} or "
            "other --hardware"
        )


def recommend(
    work: Work, computer: Computer, batch: int | None = None, kinds: Sequence[KVDTypeName] = KV_DTYPES
) -> Recommended | None:
    """What decodes most tokens per second: by the largest batch, or with `batch` sequences. None where nothing fits.

    kinds: number formats of pages that scout may have; those of full attention are `work`'s.
    """
    rows = [_row("full", work, computer, batch)]
    rows += [_row("scout", work._replace(kv_dtype=kind), computer, batch) for kind in kinds]
    best: Row | None = None
    for row in rows:
        if row.batch and row.kv_dtype != "int4" and (best is None or row.tokens_per_s > _gain(row) * best.tokens_per_s):
            best = row
    if best is None:
        best = next((row for row in rows if row.batch), None)
    if best is None:
        return None
    lookahead, speed = work.scout.lookahead, best.tokens_per_s
    chosen = work._replace(batch=best.batch, kv_dtype=best.kv_dtype)
    if best.design == "scout" and computer.card is not None:
        lookahead, speed = _lookahead(chosen, computer, speed)
    cache = needs_of(best.design, chosen, computer).cache
    return Recommended(best.design, work.context, best.batch, best.kv_dtype, lookahead, speed, cache)


def _gain(row: Row) -> float:
    return GAIN if row.kv_dtype != "auto" else 1.0


def _lookahead(work: Work, computer: Computer, speed: float) -> tuple[int, float]:
    """The least lookahead that is not clearly slower than a larger one, and its tokens per second."""
    best = work.scout.lookahead
    for layers in LOOKAHEADS:
        tried = work._replace(scout=replace(work.scout, lookahead=layers))
        reached = work.batch / predict("scout", tried, computer).step_s
        if layers > best and reached > AHEAD_GAIN * speed:
            best, speed = layers, reached
    return best, speed


def predict(design: Design, work: Work, computer: Computer, *, traced: bool = False) -> Simulated:
    """A mean step of a design.   traced: whether it has its spans."""
    layers = work.shape.num_layers
    schedule = schedule_of(design, layers, work.scout)
    return simulate(
        costs_of(design, work, computer), schedule, Drift(work.share, spread=0.0).steps(1, layers), traced=traced
    )


def timelines_of(made: Plan) -> dict[str, Timeline]:
    """A simulated step of each design in the first context that it fits, with pages in the model's dtype."""
    found: dict[str, Timeline] = {}
    for row in made.rows:
        if row.batch and row.kv_dtype == "auto" and row.engine not in found:
            work = work_of(made.model, made.scout, row.context)._replace(batch=row.batch, drift=made.drift)
            found[row.engine] = predict(row.design, work, made.computer, traced=True).timeline()
    return found


def work_of(model: NamedShape, scout: ScoutConfig, context: int) -> Work:
    """One sequence of a context, even if it is longer than the model allows."""
    shape = replace(model.shape, max_positions=max(context, model.shape.max_positions))
    return Work(shape, model.tied, context, 1, scout, weights=model.weights)


def _kv_dtypes(computer: Computer, design: Design) -> tuple[KVDTypeName, ...]:
    return KV_DTYPES if design == "scout" or computer.card is None else ("auto",)


def _designs(computer: Computer) -> tuple[Design, ...]:
    return DESIGNS if computer.card is not None else ("full", "scout")


def _rows(work: Work, computer: Computer, batch: int | None) -> Iterator[Row]:
    for design in _designs(computer):
        for kind in _kv_dtypes(computer, design):
            yield _row(design, work._replace(kv_dtype=kind), computer, batch)


def _row(design: Design, work: Work, computer: Computer, batch: int | None) -> Row:
    largest = largest_batch(design, work, computer)
    shown = largest if batch is None else batch
    work = work._replace(batch=max(1, shown))
    lacks = missing(design, work, computer)
    needs = needs_of(design, work, computer)
    step = predict(design, work, computer)
    far = design in ("compute", "scout") and computer.card is not None
    costs = costs_of(design, work, computer).layer
    return Row(
        design=design,
        kv_dtype=work.kv_dtype,
        context=work.context,
        batch=0 if any(lacks) else shown,
        largest=largest,
        step_s=step.step_s,
        idle=step.idle,
        cpu_share=work.share if far else 0.0,
        window_s=step.step_s / work.shape.num_layers * (work.scout.lookahead if design == "scout" else 0) * far,
        far_s=(costs.far_call + work.share * costs.far) * far,
        device=needs.device,
        host=needs.host,
        missing_device=lacks.device,
        missing_host=lacks.host,
    )


def _break_even(work: Work, computer: Computer) -> BreakEven:
    full = _row("full", work, computer, None)
    most = largest_batch("scout", work, computer)

    def wins(batch: int) -> bool:
        return batch / predict("scout", work._replace(batch=batch), computer).step_s > full.tokens_per_s

    batch = None
    if most and wins(most):
        low, batch = 0, most
        while batch - low > 1:
            middle = (low + batch) // 2
            low, batch = (low, middle) if wins(middle) else (middle, batch)
    full_needs, needs = (needs_of(design, work._replace(batch=1), computer) for design in ("full", "scout"))
    one = (full_needs.host, needs.host) if computer.card is None else (full_needs.device, needs.device)
    return BreakEven(work.context, batch, *one)


def _pays_from(work: Work, computer: Computer) -> int | None:
    for context in CONTEXTS:
        work = work._replace(context=context)
        full, ours = (_row(design, work, computer, None).tokens_per_s for design in ("full", "scout"))
        if ours > full:
            return context
    return None
