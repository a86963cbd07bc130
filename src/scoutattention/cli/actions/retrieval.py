"""What `scout eval retrieval` does: it asks every question twice, and prints or draws the scores."""

import json
from dataclasses import asdict
from typing import Any

from rich.text import Text

from ...engine.device import find_device
from ...eval.retrieval.measure import Grid, Row, as_dict, heatmap, measure, open_pair, summarise
from ...eval.retrieval.tasks import TASKS
from ...models.loader import load
from ..command import load_action
from ..output import PlainTable, loading, progress, show, write_file
from ..retrieval import RetrievalFlags
from ..settings import Settings

MAPS = {"full": "Full attention", "scout": "Scout", "difference": "Difference"}


def retrieval(flags: RetrievalFlags, places: tuple[tuple[int, ...], tuple[int, ...]], settings: Settings) -> None:
    """Ask, then write what the flags ask for.   places: lengths in tokens, and depths in percent."""
    names = tuple(TASKS) if flags.tasks is None else tuple(dict.fromkeys(t.strip() for t in flags.tasks.split(",")))
    grid = Grid(*places, names, flags.samples, flags.seed)
    rows, about = _measure(flags.model, grid, settings)
    if flags.plot is not None:
        write_file(
            flags.plot,
            load_action("drawings").retrieval_png(
                rows, f"{flags.model}, budget {settings.scout.budget or 'all'} tokens"
            ),
        )
    if flags.as_json:
        config = {"model": flags.model, **asdict(settings.scout), **asdict(settings.engine)}
        report = {"rows": [as_dict(row) for row in rows], "summary": summarise(rows), **about}
        print(json.dumps(report | {"grid": asdict(grid), "config": config}), flush=True)
    else:
        show(*(_heatmap(rows, *item) for item in MAPS.items()), _summary(rows, about["cpu_share"]))


def _measure(model: str, grid: Grid, settings: Settings) -> tuple[list[Row], dict[str, Any]]:
    """The rows; the CPU share, and the calibration that the method used."""
    with loading(model):
        engine, device = settings.engine, find_device(settings.engine.device)
        loaded = load(model, engine.dtype, device, rope_scaling=engine.rope_scaling, weights=engine.weights)
        pair = open_pair(loaded, grid, settings.scout, engine)
    try:
        with progress() as watch:
            rows = measure(pair, grid, lambda done, total: watch("Asking", done, total))
        return rows, {"cpu_share": pair.scout.stats.cpu_share, "calibration": pair.scout.calibration}
    finally:
        pair.close()


def _style(name: str, score: float) -> str:
    good, fair = (-0.02, -0.1) if name == "difference" else (0.9, 0.5)
    return "green" if score >= good else "yellow" if score >= fair else "red"


def _cell(name: str, score: float | None) -> Text:
    if score is None:
        return Text()
    sign = "+" if name == "difference" else ""
    return Text(f"{score * 100:{sign}.0f}", _style(name, score))


def _heatmap(rows: list[Row], name: str, title: str) -> PlainTable:
    depths = list(dict.fromkeys(row.depth for row in rows))
    headings = ("all" if depth is None else f"{depth} %" for depth in depths)
    table = PlainTable("Tokens, depth", *headings, title=title)
    for length, line in heatmap(rows, name).items():
        table.add_row(f"{length:,}", *(_cell(name, line.get(depth)) for depth in depths))
    return table


def _summary(rows: list[Row], share: float) -> PlainTable:
    summary: dict[str, Any] = summarise(rows)
    table = PlainTable("Mean of", "Rows", *MAPS.values())
    named = summary["tasks"] | {"all": summary["all"], "full attention ≥ 50": summary["answerable"]}
    for name, means in named.items():
        table.add_row(name, str(means["rows"]), *(_cell(column, means[column]) for column in MAPS))
    table.caption = f"CPU share: {share:.1%} of the chosen blocks"
    return table
