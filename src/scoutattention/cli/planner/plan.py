"""`scout plan`: what fits on a computer, and how fast it would decode. It loads neither PyTorch nor a model."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from ...config import ScoutConfig, parse_size
from ...config.fields import format_bytes
from ...errors import ConfigError
from ...hardware.doctor import cache_folder
from ...hardware.gpu import read_driver
from ...hardware.host import Host
from ...hardware.measure import stored
from ...models.shapes.known import read_model
from ...planner.computers import Computer, find_computer, this_computer
from ...planner.planner import Plan, Recommended, Row, make_plan, timelines_of
from ...trace.chrome import to_json
from ..command import Call, load_action, takes
from ..flags import Ablations, AsJson, Plot, flag
from ..inputs import read_numbers
from ..output import PlainTable, check_drawing, check_writable, show, write_file
from ..settings import Settings, flag_of, read_settings, settings_of

MEASURED = "measured"
ABLATIONS = ("candidates", "correction_dims", "recall_interval", "recall_target", "true_query_layers")
"""What the planner knows the cost of."""
COLUMNS = ("Context", "Design", "Batch", "ms/step", "Tokens/s", "Waits", "CPU share", "CPU takes", "It has", "Memory")


@dataclass(frozen=True)
class PlanFlags:
    """The flags of `scout plan`, beside the settings of the method."""

    shape: Annotated[str, typer.Argument(help="A known model such as qwen3-8b, or a config.json.", show_default=False)]
    hardware: Annotated[
        str,
        flag(
            "--hardware",
            "A card, a host, CARD+HOST, a cloud's machine; or 'measured': this one, by `scout doctor --measure`.",
            metavar="NAME",
        ),
    ] = MEASURED
    context: Annotated[
        str, flag("--context", "Lengths of sequences in tokens, prompts and answers.", metavar="LIST")
    ] = "8192,32768,65536,131072"
    batch: Annotated[
        str | None, flag("--batch", "Sequences decoded at once. Without it: the most that fit.", metavar="LIST")
    ] = None
    host_memory: Annotated[
        str | None, flag("--host-memory", "Host memory, instead of the hardware's usual one.", metavar="SIZE")
    ] = None
    drift: Annotated[
        Path | None,
        flag("--drift", "Take the CPU share from what `scout eval fidelity --record` wrote.", metavar="FILE"),
    ] = None
    ablation: Ablations = None
    as_json: AsJson = False
    plot: Plot = None
    trace: Annotated[
        Path | None, flag("--trace", "Write a simulated step of each design, for `scout trace`.", metavar="FILE")
    ] = None


@takes(PlanFlags, ScoutConfig)
def plan(call: Call[PlanFlags]) -> None:
    """Predict what fits on a computer, how fast each design decodes there, and from where on scout pays.

    Nothing is run or loaded: the prediction is arithmetic on data sheets, and on what was measured of the engine.
    docs/planning.md says how good it is.
    """
    flags = call.flags
    check_drawing("--plot", flags.plot)
    check_writable("--trace", flags.trace)
    contexts = read_numbers("--context", flags.context, least=1)
    batches = () if flags.batch is None else read_numbers("--batch", flags.batch, least=1)
    settings = _settings(call)
    model = read_model(flags.shape)
    computer = computer_of(flags.hardware)
    if flags.host_memory is not None:
        computer = computer.with_host_memory(parse_size(flags.host_memory))
    drift = None if flags.drift is None else _mean_share(flags.drift, settings.scout)
    made = make_plan(model, computer, settings.scout, contexts, batches, drift)
    if flags.plot is not None:
        about = f"{model.name} on {computer.name}, predicted"
        write_file(flags.plot, load_action("drawings").gpu_png([row for row in made.rows if row.batch], about))
    if flags.trace is not None:
        write_file(flags.trace, to_json(timelines_of(made)).encode())
    if flags.as_json:
        print(json.dumps(_as_json(made)), flush=True)
        return
    show(_table(made), _break_even(made), *_lines(made))


def _settings(call: Call[PlanFlags]) -> Settings:
    """The settings to plan for. Raises ConfigError where one of them is nothing that the planner knows the cost of."""
    pairs = call.flags.ablation or ()
    settings = read_settings(call.settings, ablation=pairs)
    unknown = [pair for pair in pairs if pair.partition("=")[0].replace("-", "_") not in ABLATIONS]
    if unknown:
        raise ConfigError(f"--ablation {unknown[0]}: the planner knows the costs of {', '.join(ABLATIONS)} alone")
    if settings.scout.budget is None:
        raise ConfigError("--budget all is full attention, which every plan has a row of: give a number of tokens")
    return settings


def _mean_share(file: Path, scout: ScoutConfig) -> float:
    """The CPU share of a recording, without a limit. Raises ModelFileError where the file is none."""
    residency = import_module("scoutattention.planner.residency")  # here: NumPy is loaded for it
    return float(residency.mean_share(residency.read_recording(file), scout))


def computer_of(name: str) -> Computer:
    """The hardware of a name; "measured" is this computer.   Raises ConfigError, also where nothing was measured."""
    if name != MEASURED:
        return find_computer(name)
    measured = stored(cache_folder(os.environ))
    if measured is None:
        raise ConfigError(
            "this computer was not measured yet: run `scout doctor --measure` (half a minute), or give --hardware NAME"
        )
    return this_computer(Host(), read_driver(), measured)


def _as_json(made: Plan) -> dict[str, Any]:
    rows = [asdict(row) | {"tokens_per_s": row.tokens_per_s} for row in made.rows]
    best = {"recommended": made.recommended, "alone": made.alone}
    commands = {name: [asdict(one) | {"command": _command(one, made)} for one in of] for name, of in best.items()}
    even = [one._asdict() for one in made.break_even]
    model = made.model._asdict() | {"shape": asdict(made.model.shape)}
    about = {"model": model, "computer": asdict(made.computer), "scout": asdict(made.scout)}
    return about | {"rows": rows, "break_even": even, "pays_from": made.pays_from} | commands


def _table(made: Plan) -> PlainTable:
    table = PlainTable(*COLUMNS, keys=3, title=_title(made))
    last = {row.context: row for row in made.rows}
    for row in made.rows:
        table.add_row(*_cells(row, made), end_section=row is last[row.context])
    return table


def _title(made: Plan) -> str:
    shape, card, host = made.model.shape, made.computer.card, made.computer.host
    weights = shape.matrix_numbers(tied=made.model.tied) * shape.dtype_bytes
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


def _break_even(made: Plan) -> PlainTable:
    kind = "GPU" if made.computer.card else "host"
    table = PlainTable("Context", "Scout pays from batch", "Full attention needs", "Scout needs")
    table.title = f"Break-even with full attention's best batch, and {kind} memory that one sequence needs"
    for even in made.break_even:
        pays = "-" if even.batch is None else str(even.batch)
        table.add_row(f"{even.context:,}", pays, format_bytes(even.full_needs), format_bytes(even.scout_needs))
    return table


def _lines(made: Plan) -> Iterator[str]:
    if made.pays_from is None:
        yield "Full attention is faster at every context up to 1,048,576 tokens."
    else:
        yield f"At its best batch, scout is faster from contexts of about {made.pays_from:,} tokens on."
    longest = made.model.shape.max_positions
    if any(row.context > longest for row in made.rows):
        yield f"The model itself takes {longest:,} tokens; its card says whether it can be stretched by --rope-scaling."
    for title, of in (("For many sequences at once", made.recommended), ("For one sequence at a time", made.alone)):
        for best in of:
            speed = f"about {best.tokens_per_s:,.0f} tokens/s"
            yield f"{title} of {best.context:,} tokens ({speed}):\n  {_command(best, made)}"
    if not made.recommended:
        yield "Nothing fits: take a smaller model, shorter contexts or other --hardware."


def _command(best: Recommended, made: Plan) -> str:
    """The command that runs what is recommended, with MODEL for the model's name or folder."""
    words = ["scout serve MODEL" if best.batch > 1 else "scout generate MODEL --prompt-file FILE"]
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
    if best.kv_dtype != "auto":
        words.append(f"--kv-dtype {best.kv_dtype}")
    longest = made.model.shape.max_positions
    if best.context > longest:
        scaling = {"rope_type": "yarn", "factor": float(-(-best.context // longest))}
        scaling["original_max_position_embeddings"] = longest
        words.append(f"--rope-scaling '{json.dumps(scaling)}'")
    return " ".join(words)


def _changed(scout: ScoutConfig, best: Recommended) -> dict[str, object]:
    """The settings of the method that are not the defaults, as flags take them."""
    own = settings_of(ScoutConfig)
    values = {item.name: getattr(scout, item.name) for item in fields(scout) if item.name in own}
    values["lookahead"] = best.lookahead
    changed = {name: value for name, value in values.items() if value != own[name][0].default}
    return {name: own[name][1].none_word if value is None else value for name, value in changed.items()}
