"""A plan as tables, as sentences, and as commands that can be pasted."""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields

from ...config import ScoutConfig
from ...config.fields import format_bytes
from ...models.resolve import BUNDLED
from ...models.shapes.known import known_shape
from ...planner.compare import QUANTITIES, Comparison, Pair
from ...planner.explore import Explored
from ...planner.planner import Plan, Recommended, Row, work_of
from ...planner.work import weight_bytes
from ..output import INDENT, PlainTable
from ..settings import flag_of, settings_of

COLUMNS = ("Context", "Design", "Batch", "ms/step", "Tokens/s", "Waits", "CPU share", "CPU takes", "It has", "Memory")
COMPARED = ("Engine", "Context", "Batch", "ms/step", "Hidden, ms", "Unhidden, ms", "CPU share")
EXPLORED = (
    "Setting",
    "Value",
    "Batch",
    "ms/step",
    "Tokens/s",
    "Waits",
    "Absent",
    "CPU share",
    "CPU takes",
    "GPU memory",
)


def plan_table(made: Plan) -> PlainTable:
    """What each design needs and how fast it is, in each case."""
    table = PlainTable(*COLUMNS, keys=3, title=_title(made))
    last = {row.context: row for row in made.rows}
    for row in made.rows:
        table.add_row(*_cells(row, made), end_section=row is last[row.context])
    return table


def _title(made: Plan) -> str:
    shape, card, host = made.model.shape, made.computer.card, made.computer.host
    weights = weight_bytes(work_of(made.model, made.scout, 1), made.computer)
    where = f"{host.cores} cores, {format_bytes(host.memory)} of host memory at {host.bandwidth / 1e9:.0f} GB/s"
    if card is not None:
        where = f"{format_bytes(card.memory)} of GPU memory at {card.bandwidth / 1e9:,.0f} GB/s, {where}"
    return f"{made.model.name} in {shape.dtype}, {format_bytes(weights)} of weights, on {made.computer.name}: {where}"


def _cells(row: Row, made: Plan) -> Iterator[str]:
    yield from (f"{row.context:,}", row.engine)
    if not row.batch:
        lacks = {"GPU": row.missing_device, "host": row.missing_host}
        short = ", ".join(f"{format_bytes(size)} of {what} memory" for what, size in lacks.items() if size)
        yield from ("-", "-", "-", "-", "-", "-", "-", f"{short} missing")
        return
    yield from (str(row.batch), f"{row.ms_per_step:.1f}", f"{row.tokens_per_s:,.0f}", f"{row.idle:.0%}")
    far = row.far_s > 0
    yield f"{row.cpu_share:.1%}" if far else ""
    yield f"{row.far_s * 1e3:.2f} ms" if far else ""
    yield f"{row.window_s * 1e3:.2f} ms" if row.window_s else ""
    sizes = {"GPU": row.device, "host": row.host} if made.computer.card else {"host": row.host}
    yield ", ".join(f"{format_bytes(size)} {what}" for what, size in sizes.items())


def break_even_table(made: Plan) -> PlainTable:
    """From where on scout pays."""
    kind = "GPU" if made.computer.card else "host"
    table = PlainTable("Context", "Scout pays from batch", "Full attention needs", "Scout needs")
    table.title = f"Break-even with full attention's best batch, and {kind} memory that one sequence needs"
    for even in made.break_even:
        pays = "-" if even.batch is None else str(even.batch)
        table.add_row(f"{even.context:,}", pays, format_bytes(even.full_needs), format_bytes(even.scout_needs))
    return table


def sentences(made: Plan, stored: Sequence[str]) -> Iterator[str]:
    """What a plan comes to, and the commands that run it.   stored: flags of the weights; see `command_of`."""
    if made.pays_from is None:
        yield "Full attention is faster at every context up to 1,048,576 tokens."
    else:
        yield f"At its best batch, scout is faster from contexts of about {made.pays_from:,} tokens on."
    longest = made.model.shape.max_positions
    if any(row.context > longest for row in made.rows):
        yield f"The model itself takes {longest:,} tokens; its card says whether it can be stretched by --rope-scaling."
    many = [best for best in made.recommended if best.batch > 1]
    for title, of in (("For many sequences at once", many), ("For one sequence at a time", made.alone)):
        for best in of:
            speed = f"about {best.tokens_per_s:,.0f} tokens/s"
            yield f"{title} of {best.context:,} tokens ({speed}):\n{INDENT}{command_of(best, made, stored)}"
    if not made.recommended:
        yield "Nothing fits: take a smaller model, shorter contexts or other --hardware."


def command_of(best: Recommended, made: Plan, stored: Sequence[str]) -> str:
    """The command that runs what is recommended, with MODEL where nothing says what the model's name or folder is.

    stored: flags that say how weights and cache are kept.
    """
    model = _pasted(made.model.name)
    words = [f"scout serve {model}" if best.batch > 1 else f"scout generate {model} --prompt-file FILE"]
    if made.computer.card is not None:
        words.append("--device cuda")
    words.append(f"--max-model-len {best.context}")
    if best.batch > 1:
        words.append(f"--max-num-seqs {best.batch}")
    if best.design == "full":
        words.append("--dense")
    else:
        words += [f"{flag_of(name)} {value}" for name, value in _changed(made.scout, best).items()]
    if best.host_memory:
        words.append(f"--host-memory {-(-best.host_memory // (1 << 20))}MiB")
    words += stored
    if best.kv_dtype != "auto":
        words.append(f"--kv-dtype {best.kv_dtype}")
    longest = made.model.shape.max_positions
    if best.context > longest:
        trained = min(longest, made.model.trained or longest)
        scaling = {"rope_type": "yarn", "factor": float(-(-best.context // trained))}
        scaling["original_max_position_embeddings"] = trained
        words.append(f"--rope-scaling '{json.dumps(scaling)}'")
    return " ".join(words)


def _changed(scout: ScoutConfig, best: Recommended) -> dict[str, object]:
    """The settings of the method that are not the defaults, as flags take them."""
    own = settings_of(ScoutConfig)
    values = {item.name: getattr(scout, item.name) for item in fields(scout) if item.name in own}
    values["lookahead"] = best.lookahead
    changed = {name: value for name, value in values.items() if value != own[name][0].default}
    return {name: own[name][1].none_word if value is None else value for name, value in changed.items()}


def _pasted(name: str) -> str:
    """What stands for the model in a command: what was asked for, unless that is a shape without weights."""
    if name.endswith(".json") or ("/" not in name and name != BUNDLED and known_shape(name) is not None):
        return "MODEL"
    return shlex.quote(name)


def explored_table(found: Sequence[Explored], context: int, made: Plan) -> PlainTable:
    """One setting after another; a star marks the plan's own values."""
    title = (
        f"{made.model.name} on {made.computer.name}, {context:,} tokens: one setting changed at a time (* as planned)"
    )
    table = PlainTable(*EXPLORED, keys=2, title=title)
    for one, after in zip(found, [*found[1:], None], strict=True):
        value = f"{one.value} *" if one.usual else one.value
        cells: tuple[str, ...] = ("-",) * 7
        if one.batch:
            speed = (f"{one.step_s * 1e3:.1f}", f"{one.tokens_per_s:,.0f}", f"{one.idle:.0%}")
            cells = (str(one.batch), *speed, f"{one.absent:.1%}", f"{one.cpu_share:.1%}", f"{one.far_s * 1e3:.2f} ms")
        last = after is None or after.setting != one.setting
        table.add_row(one.setting, value, *cells, format_bytes(one.device), end_section=last)
    return table


def compared_tables(found: Comparison, model: str) -> Iterator[PlainTable]:
    """Measured cases beside predictions, each as "measured / predicted" and the error; a table for each setting."""
    for setting in dict.fromkeys(case.setting for case in found.cases):
        table = PlainTable(*COMPARED, keys=3, title=f"{model}, {setting}: measured / predicted, error")
        for case in found.cases:
            if case.setting == setting:
                cells = [_pair(of, case.pairs.get(of)) for of in QUANTITIES]
                table.add_row(case.engine, f"{case.context:,}", str(case.batch), *cells)
        yield table


def _pair(of: str, pair: Pair | None) -> str:
    if pair is None or not any(pair):
        return ""
    error = "" if pair.error is None else f", {pair.error:+.0%}"
    if of == "share":
        return f"{pair.measured:.1%} / {pair.predicted:.1%}{error}"
    digits = 2 if of == "step" else 3
    return f"{pair.measured * 1e3:.{digits}f} / {pair.predicted * 1e3:.{digits}f}{error}"


def median_errors(found: Comparison) -> str:
    """The median error of each quantity, and of times that were waited for or hidden as a part of the step."""
    words = []
    for of in QUANTITIES:
        error, part = found.median_error(of), found.median_part(of)
        if error is not None:
            more = f" ({part:.1%} of the step)" if of in ("hidden", "unhidden") and part is not None else ""
            words.append(f"{of} {error:.0%}{more}")
    return f"Median errors: {', '.join(words)}."
