"""`scout eval fidelity`: how close the method stays to full attention, on real text."""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from ..config import EngineConfig, ScoutConfig
from ..errors import ConfigError
from .generate import Debug, Model
from .output import check_drawing, check_folder, show, write_file
from .prompt import read_file
from .report import plain_table
from .settings import Settings, flag_of, read_settings, with_settings

if TYPE_CHECKING:
    from ..eval.fidelity.measure import Watch
    from ..eval.fidelity.report import Measured
    from ..eval.text import Text

TextFiles = Annotated[
    list[Path] | None,
    typer.Option("--text", help="A UTF-8 file to measure on; may be repeated. Without it, Python's own texts."),
]
Context = Annotated[int, typer.Option("--context", help="Tokens of each text that are read as the prompt.")]
Steps = Annotated[int, typer.Option("--steps", help="Tokens after them that are fed one by one, and compared.")]
Changed = Annotated[
    list[str] | None,
    typer.Option(
        "--ablation", metavar="NAME=VALUE", help="Change one idea of the method, as digest=minmax; repeatable."
    ),
]
Ablate = Annotated[bool, typer.Option("--ablate", help="Compare the published design and each improvement of it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Plot = Annotated[Path | None, typer.Option("--plot", help="Write the plots to this PNG file.")]
Record = Annotated[
    Path | None,
    typer.Option(
        "--record", help="Write what true queries and scouts chose to this file, for `scout bench gpu --replay`."
    ),
]
Html = Annotated[Path | None, typer.Option("--html", help="Write a report to this HTML file, plots inside.")]


@contextmanager
def watched() -> Iterator["Watch"]:
    """A progress bar on stderr, where that is a terminal."""
    form = "{desc} {percentage:3.0f}% {bar} {elapsed}"
    with tqdm(bar_format=form, leave=False, disable=not sys.stderr.isatty()) as bar:
        shown = ""

        def watch(stage: str, done: int, total: int) -> None:
            nonlocal shown
            if stage != shown:
                shown = stage
                bar.reset(total)
                bar.set_description(stage, refresh=False)
            bar.update(done - bar.n)

        yield watch


def _texts(files: list[Path] | None, *, one: bool = False) -> "list[Text]":
    # Inside, since it loads PyTorch with the tokenizer.
    from ..eval.text import Text, code, mixed, prose  # noqa: PLC0415

    if not files:
        return [prose()] if one else [prose(), code(), mixed()]
    return [Text(str(file), read_file(file, "text file")) for file in dict.fromkeys(files)]


def _measure(
    model: str, texts: "list[Text]", lengths: tuple[int, int], settings: Settings, *, ablate: bool, record: Path | None
) -> "list[Measured]":
    # Inside, so that help and wrong arguments need not load PyTorch, which takes seconds.
    from ..engine.device import find_device  # noqa: PLC0415
    from ..eval.fidelity.ablation import Variant, ablation  # noqa: PLC0415
    from ..eval.fidelity.recorder import Recorder, recorded_variants, recording  # noqa: PLC0415
    from ..eval.fidelity.run import run  # noqa: PLC0415
    from ..models.loader import load  # noqa: PLC0415

    scout, engine_config = settings.scout, settings.engine
    variants = [Variant("scout", scout, engine_config.device_memory)]
    if record is not None:
        variants = recorded_variants(variants[0], lengths[0])
    loaded = load(model, engine_config.dtype, device=find_device(engine_config.device))
    if ablate:
        variants = ablation(scout, loaded.decoder.shape)
    recorders = {variant.name: Recorder() for variant in variants if record is not None}
    with watched() as watch:
        measured = run(loaded, engine_config, texts, lengths, variants=variants, watch=watch, also=recorders)
    if record is not None:
        write_file(record, recording(scout, recorders, (model, texts[0].name), lengths[0]).to_bytes())
    return measured


def _check_record(context: typer.Context, record: Path, files: list[Path] | None, *, ablate: bool) -> None:
    check_folder("--record", record)
    if ablate or any(pair.startswith("predictor") for pair in context.params["ablation"] or ()):
        raise ConfigError(
            "--record runs both predictors and nothing else, so it excludes --ablation predictor=... and --ablate"
        )
    if files is not None and len(files) > 1:
        raise ConfigError(f"--record takes one text, and there are {len(files)}: give --text once")


def _reject_what_rows_set(context: typer.Context) -> None:
    from ..eval.fidelity.ablation import SET_BY_ROWS  # noqa: PLC0415

    for name in SET_BY_ROWS:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ConfigError(f"--ablate gives each row its own value, so it excludes {flag_of(name)}")
    for pair in context.params["ablation"] or ():
        if pair.partition("=")[0] in SET_BY_ROWS:
            raise ConfigError(f"--ablate gives each row its own value, so it excludes --ablation {pair}")


def _draw(measured: "list[Measured]", plot: Path | None, html: Path | None, settings: dict[str, Any]) -> None:
    from ..eval.fidelity.html import page  # noqa: PLC0415
    from ..eval.fidelity.plot import png  # noqa: PLC0415

    picture = png(measured)
    if plot is not None:
        write_file(plot, picture)
    if html is not None:
        write_file(html, page(measured, picture, settings, shlex.join(["scout", *sys.argv[1:]])).encode())


def _print(measured: "list[Measured]") -> None:
    from ..eval.fidelity.table import HEADINGS, rows  # noqa: PLC0415

    table = plain_table(*HEADINGS)
    lines = rows(measured)
    for line, after in zip(lines, [*lines[1:], [""]], strict=True):
        table.add_row(*line, end_section=line[0] != after[0])
    used = {item.fidelity.calibration: None for item in measured}
    table.caption, table.caption_justify = f"Calibration: {', '.join(used)}", "left"
    show(table)


@with_settings(ScoutConfig, EngineConfig, device_memory="slots")
def fidelity(
    typer_context: typer.Context,
    model: Model,
    *,
    text: TextFiles = None,
    context: Context = 4096,
    steps: Steps = 64,
    ablate: Ablate = False,
    ablation: Changed = None,
    as_json: AsJson = False,
    plot: Plot = None,
    html: Html = None,
    record: Record = None,
    debug: Debug = False,
    **flags: object,
) -> None:
    """Compare next-token predictions with full attention's, over teacher-forced steps of real text.

    One prefill for each text serves full attention and every configuration.
    """
    typer_context.obj.debug = debug
    if ablate:
        _reject_what_rows_set(typer_context)
    settings = read_settings(flags, ablation=ablation or ())
    for flag, file in (("--plot", plot), ("--html", html)):
        if file is not None:
            check_drawing(flag, file)
    if record is not None:
        _check_record(typer_context, record, text, ablate=ablate)
    texts = _texts(text, one=record is not None)
    measured = _measure(model, texts, (context, steps), settings, ablate=ablate, record=record)
    about = {"model": model, "context": context, "steps": steps}
    if plot is not None or html is not None:
        _draw(measured, plot, html, about | asdict(settings.scout) | asdict(settings.engine))
    if as_json:
        from ..eval.fidelity.report import report  # noqa: PLC0415

        print(json.dumps(report(measured, about, ablate=ablate or record is not None)), flush=True)
    else:
        _print(measured)
