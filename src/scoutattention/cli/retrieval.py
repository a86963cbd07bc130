"""`scout eval retrieval`: what is found in long prompts, with full attention and with the method."""

import json
import sys
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.table import Table
from tqdm import tqdm

from ..config import EngineConfig, ScoutConfig
from .fidelity import Changed
from .generate import Debug, Model
from .numbers import read_numbers
from .output import check_drawing, show, write_file
from .report import plain_table
from .settings import Settings, read_settings, with_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..eval.retrieval.measure import Grid, Row

Lengths = Annotated[str, typer.Option("--lengths", help="Prompt lengths in tokens, template and question included.")]
Depths = Annotated[str, typer.Option("--depths", help="Where the answer is, in percent of the text before it.")]
Tasks = Annotated[
    str | None, typer.Option("--tasks", help="Of single, multikey, multivalue, multiquery, variables, common.")
]
Samples = Annotated[int, typer.Option("--samples", help="Prompts for each length, depth and task.")]
Seed = Annotated[int, typer.Option("--seed", help="Another number makes other prompts.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Plot = Annotated[Path | None, typer.Option("--plot", help="Draw the three heatmaps into this PNG file.")]

MAPS = {"full": "Full attention", "scout": "Scout", "difference": "Difference"}


def _grid(lengths: str, depths: str, tasks: str | None, samples: int, seed: int) -> "Grid":
    from ..eval.retrieval.measure import Grid  # noqa: PLC0415
    from ..eval.retrieval.tasks import TASKS  # noqa: PLC0415

    names = tuple(TASKS) if tasks is None else tuple(dict.fromkeys(task.strip() for task in tasks.split(",")))
    return Grid(read_numbers("--lengths", lengths), read_numbers("--depths", depths), names, samples, seed)


@contextmanager
def _bar() -> "Iterator[Callable[[int, int], None]]":
    form = "{desc} {percentage:3.0f}% {bar} {n_fmt}/{total_fmt} {elapsed}"
    with tqdm(desc="Asking", bar_format=form, leave=False, disable=not sys.stderr.isatty()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def _measure(model: str, grid: "Grid", settings: Settings) -> "tuple[list[Row], dict[str, Any]]":
    """The rows; the CPU's share of the blocks that the method chose, and the calibration that it used."""
    # Inside, so that help and wrong arguments need not load PyTorch, which takes seconds.
    from ..engine.device import find_device  # noqa: PLC0415
    from ..eval.retrieval.measure import measure, open_pair  # noqa: PLC0415
    from ..models.loader import load  # noqa: PLC0415

    errors = Console(stderr=True)
    with errors.status(f"Loading {model}") if errors.is_terminal else nullcontext():
        loaded = load(model, settings.engine.dtype, device=find_device(settings.engine.device))
        pair = open_pair(loaded, grid, settings.scout, settings.engine)
    try:
        with _bar() as progress:
            rows = measure(pair, grid, progress)
        return rows, {"cpu_share": pair.scout.stats.cpu_share, "calibration": pair.scout.calibration}
    finally:
        pair.close()


def _style(name: str, score: float) -> str:
    good, fair = (-0.02, -0.1) if name == "difference" else (0.9, 0.5)
    return "green" if score >= good else "yellow" if score >= fair else "red"


def _cell(name: str, score: float | None) -> str:
    if score is None:
        return ""
    sign = "+" if name == "difference" else ""
    return f"[{_style(name, score)}]{score * 100:{sign}.0f}[/]"


def _heatmap(rows: "list[Row]", name: str, title: str) -> Table:
    from ..eval.retrieval.measure import heatmap  # noqa: PLC0415

    lines = heatmap(rows, name)
    depths = list(dict.fromkeys(row.depth for row in rows))
    table = plain_table("Tokens, depth", *("all" if depth is None else f"{depth} %" for depth in depths))
    table.title, table.title_justify = title, "left"
    for length, line in lines.items():
        table.add_row(f"{length:,}", *(_cell(name, line.get(depth)) for depth in depths))
    return table


def _summary(rows: "list[Row]", share: float) -> Table:
    from ..eval.retrieval.measure import summarise  # noqa: PLC0415

    summary: dict[str, Any] = summarise(rows)
    table = plain_table("Mean of", "Rows", *MAPS.values())
    named = summary["tasks"] | {"all": summary["all"], "full attention ≥ 50": summary["answerable"]}
    for name, means in named.items():
        table.add_row(name, str(means["rows"]), *(_cell(column, means[column]) for column in MAPS))
    table.caption, table.caption_justify = f"CPU's share: {share:.1%} of the chosen blocks", "left"
    return table


def _report(rows: "list[Row]", about: dict[str, Any]) -> dict[str, object]:
    from ..eval.retrieval.measure import as_dict, summarise  # noqa: PLC0415

    return {"rows": [as_dict(row) for row in rows], "summary": summarise(rows), **about}


@with_settings(ScoutConfig, EngineConfig, device_memory="slots")
def retrieval(
    context: typer.Context,
    model: Model,
    *,
    lengths: Lengths = "1024,2048,4096",
    depths: Depths = "0,25,50,75,100",
    tasks: Tasks = None,
    samples: Samples = 1,
    seed: Seed = 0,
    plot: Plot = None,
    ablation: Changed = None,
    as_json: AsJson = False,
    debug: Debug = False,
    **flags: object,
) -> None:
    """Hide facts in long texts and ask for them, with full attention and with the method.

    Scores are percentages of the expected answers that were found, as RULER counts them.
    """
    context.obj.debug = debug
    settings = read_settings(flags, ablation=ablation or ())
    if plot is not None:
        check_drawing("--plot", plot)
    grid = _grid(lengths, depths, tasks, samples, seed)
    rows, about = _measure(model, grid, settings)
    if plot is not None:
        from ..eval.retrieval.plot import png  # noqa: PLC0415

        write_file(plot, png(rows))
    if as_json:
        config = {"model": model, **asdict(settings.scout), **asdict(settings.engine)}
        print(json.dumps(_report(rows, about) | {"grid": asdict(grid), "config": config}), flush=True)
    else:
        show(Group(*(_heatmap(rows, *item) for item in MAPS.items()), _summary(rows, about["cpu_share"])))
