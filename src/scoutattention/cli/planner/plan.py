"""`scout plan`: what fits on a computer, and how fast it would decode. It loads neither PyTorch nor a model."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from ...config import ScoutConfig, WeightsName, parse_size
from ...errors import ConfigError
from ...hardware.doctor import cache_folder
from ...hardware.gpu import read_driver
from ...hardware.host import Host
from ...hardware.measure import stored
from ...models.shapes.known import read_model
from ...planner.compare import METHOD, QUANTITIES, Comparison, Prompted, Report, compare, read_report
from ...planner.computers import Computer, find_computer, this_computer
from ...planner.explore import Explored, Shares, explore
from ...planner.planner import Plan, make_plan, timelines_of, work_of
from ...shape import NamedShape
from ...trace.chrome import to_json
from ..command import Call, load_action, takes
from ..flags import Ablations, AsJson, DType, Plot, flag
from ..inputs import read_numbers
from ..output import check_drawing, check_writable, show, write_file
from ..settings import Settings, flag_of, read_settings
from .tables import (
    break_even_table,
    command_of,
    compared_tables,
    explored_table,
    median_errors,
    plan_table,
    sentences,
)

MEASURED = "measured"
ABLATIONS = ("candidates", "correction_dims", "digest", "recall_interval", "recall_target", "true_query_layers")
"""What the planner knows the cost of."""


@dataclass(frozen=True)
class PlanFlags:
    """The flags of `scout plan`, beside the settings of the method."""

    shape: Annotated[
        str, typer.Argument(help="A known model (qwen3-8b), a config.json or a .gguf file.", show_default=False)
    ]
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
        list[Path] | None,
        flag(
            "--drift",
            "Take the CPU share from what `scout eval fidelity --record` wrote; may be repeated with --check.",
            metavar="FILE",
        ),
    ] = None
    dtype: DType = "auto"
    weights: Annotated[WeightsName, flag("--weights", "How a CPU keeps the weights; as in `scout generate`.")] = "auto"
    explore: Annotated[
        bool, flag("--explore", "Show what lookahead, budget, digests, slots and recall do, one at a time.")
    ] = False
    check: Annotated[
        list[Path] | None,
        flag(
            "--check",
            "Compare with what `scout bench decode --json` or `bench gpu --json` wrote; may be repeated.",
            metavar="FILE",
        ),
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
    _check_explore(flags, batches)
    if flags.check and (flags.explore or flags.plot is not None or flags.trace is not None):
        raise ConfigError(
            "--check compares measured steps with predicted ones: leave --explore, --plot and --trace out"
        )
    settings = _settings(call)
    model = read_model(flags.shape, flags.dtype, flags.weights)
    computer = computer_of(flags.hardware)
    if flags.host_memory is not None:
        computer = computer.with_host_memory(parse_size(flags.host_memory))
    _check_weights(flags, computer)
    if flags.check:
        reports = [_checked(read_report(file), settings.scout, call) for file in flags.check]
        found = compare(reports, model, settings.scout, computer, _recordings(flags.drift or ()))
        _compare(found, model, as_json=flags.as_json)
        return
    drift, shares = _recorded(flags.drift or (), settings.scout)
    made = make_plan(model, computer, settings.scout, contexts, batches, drift)
    if flags.explore:
        explored = _explore(made, batches[0] if batches else None, shares)
        _show_explored(explored, made, as_json=flags.as_json, recorded=shares is not None)
        return
    if flags.plot is not None:
        about = f"{model.name} on {computer.name}, predicted"
        write_file(flags.plot, load_action("drawings").gpu_png([row for row in made.rows if row.batch], about))
    if flags.trace is not None:
        write_file(flags.trace, to_json(timelines_of(made)).encode())
    stored = [f"--{name} {value}" for name in ("dtype", "weights") if (value := getattr(flags, name)) != "auto"]
    if flags.as_json:
        print(json.dumps(_as_json(made, stored)), flush=True)
        return
    show(plan_table(made), break_even_table(made), *sentences(made, stored))


def _check_explore(flags: PlanFlags, batches: Sequence[int]) -> None:
    """Raises ConfigError for what --explore would leave out."""
    if flags.explore and (flags.plot is not None or flags.trace is not None or len(batches) > 1):
        raise ConfigError("--explore prints one table for each context: leave --plot, --trace and a second --batch out")


def _recorded(files: Sequence[Path], scout: ScoutConfig) -> tuple[float | None, Shares | None]:
    """The mean CPU share of a recording, without a limit, and those of its steps; None without one."""
    if not files:
        return None, None
    if len(files) > 1:
        raise ConfigError("a plan takes one recording: give --drift once")
    residency = import_module("scoutattention.planner.residency")  # here: NumPy is loaded for it
    recorded = residency.read_recording(files[0])
    return float(residency.mean_share(recorded, scout)), partial(residency.recorded_shares, recorded)


def _recordings(files: Sequence[Path]) -> dict[Prompted, Shares]:
    """The CPU shares of recordings, by their context and budget. Raises ModelFileError."""
    if not files:
        return {}
    residency = import_module("scoutattention.planner.residency")
    found = (residency.read_recording(file) for file in files)
    return {Prompted(one.context, one.budget): partial(residency.recorded_shares, one) for one in found}


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


def _check_weights(flags: PlanFlags, computer: Computer) -> None:
    """Raises ConfigError for weights that a GPU does not read."""
    if computer.card is not None and flags.weights in ("int8", "int4"):
        raise ConfigError(
            f"--weights {flags.weights} is for a CPU, and {computer.name} has a GPU, whose kernels do not read blocks: "
            "leave it out"
        )


def _checked(report: Report, scout: ScoutConfig, call: Call[PlanFlags]) -> Report:
    """A report. Raises ConfigError where a flag says otherwise than it does."""
    asked = {name: getattr(scout, name) for name in METHOD} | {"dtype": call.flags.dtype}
    for name, measured in {**report.method, "dtype": report.dtype or call.flags.dtype}.items():
        if name in call.given and asked[name] not in (measured, "auto"):
            raise ConfigError(
                f"{report.file} was measured with {name}={measured}, which {flag_of(name)} contradicts: leave it out"
            )
    return report


def _explore(made: Plan, batch: int | None, shares: Shares | None) -> dict[int, list[Explored]]:
    """What each setting does, for each context. Raises ConfigError without a GPU."""
    if made.computer.card is None:
        raise ConfigError(
            f"--explore is for a GPU, and {made.computer.name} has none, so nothing is far there: leave it out"
        )
    contexts = dict.fromkeys(row.context for row in made.rows)
    cases = {context: work_of(made.model, made.scout, context)._replace(drift=made.drift) for context in contexts}
    return {context: explore(work, made.computer, batch, shares) for context, work in cases.items()}


def _compare(found: Comparison, model: NamedShape, *, as_json: bool) -> None:
    """Print measured steps beside predicted ones."""
    if as_json:
        cases = [
            case._asdict() | {"pairs": {of: pair._asdict() for of, pair in case.pairs.items()}} for case in found.cases
        ]
        medians = {of: found.median_error(of) for of in QUANTITIES}
        print(json.dumps({"cases": cases, "unknown": found.unknown, "median_error": medians}), flush=True)
        return
    show(*compared_tables(found, model.name), median_errors(found))
    if found.unknown:
        show(f"Not predicted here: {', '.join(found.unknown)}.")


def _show_explored(found: Mapping[int, Sequence[Explored]], made: Plan, *, as_json: bool, recorded: bool) -> None:
    if as_json:
        of = {at: [asdict(one) | {"tokens_per_s": one.tokens_per_s} for one in each] for at, each in found.items()}
        print(json.dumps(of), flush=True)
        return
    show(*(explored_table(each, context, made) for context, each in found.items()))
    if not recorded:
        show("Slots and recall need --drift FILE, which `scout eval fidelity MODEL --record FILE` writes.")


def computer_of(name: str) -> Computer:
    """The hardware of a name; "measured" is this computer.   Raises ConfigError, also where nothing was measured."""
    if name != MEASURED:
        return find_computer(name)
    measured = stored(cache_folder(os.environ))
    if measured is None:
        raise ConfigError(
            "this computer was not measured yet: run `scout doctor --measure` (ten seconds), or give --hardware NAME"
        )
    return this_computer(Host(), read_driver(), measured)


def _as_json(made: Plan, stored: Sequence[str]) -> dict[str, Any]:
    rows = [asdict(row) | {"tokens_per_s": row.tokens_per_s} for row in made.rows]
    best = {"recommended": made.recommended, "alone": made.alone}
    commands = {
        name: [asdict(one) | {"command": command_of(one, made, stored)} for one in of] for name, of in best.items()
    }
    even = [one._asdict() for one in made.break_even]
    model = made.model._asdict() | {"shape": asdict(made.model.shape)}
    about = {"model": model, "computer": asdict(made.computer), "scout": asdict(made.scout)}
    return about | {"rows": rows, "break_even": even, "pays_from": made.pays_from} | commands
