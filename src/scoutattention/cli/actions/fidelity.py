"""What `scout eval fidelity` does: it runs every configuration over the texts, and prints or draws the divergence."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ...config import WeightsName
from ...config.fields import format_bytes
from ...engine.device import find_device
from ...eval.fidelity.ablation import Variant, ablation
from ...eval.fidelity.html import page
from ...eval.fidelity.recorder import Recorder, recorded_variants, recording
from ...eval.fidelity.report import Measured, report
from ...eval.fidelity.run import run
from ...eval.fidelity.table import HEADINGS, rows
from ...eval.text import Text, code, mixed, prose
from ...eval.weights import compare
from ...models.loader import load
from ..command import load_action
from ..fidelity import FidelityFlags, WeightsFlags
from ..output import PlainTable, progress, show, write_file
from ..settings import Settings
from .texts import read_texts


def fidelity(flags: FidelityFlags, settings: Settings) -> None:
    """Measure, then write what the flags ask for."""
    own = [prose()] if flags.record else [prose(), code(), mixed()]
    measured = _measure(flags, read_texts(flags.text) or own, settings)
    about = {"model": flags.model, "context": flags.context, "steps": flags.steps}
    if flags.plot is not None or flags.html is not None:
        _draw(measured, flags, about | asdict(settings.scout) | asdict(settings.engine))
    if flags.as_json:
        print(json.dumps(report(measured, about, ablate=flags.ablate or flags.record is not None)), flush=True)
    else:
        _print(measured)


def _measure(flags: FidelityFlags, texts: list[Text], settings: Settings) -> list[Measured]:
    """The configurations on every text; with --record, what they chose is written as well."""
    scout, engine_config = settings.scout, settings.engine
    lengths, record = (flags.context, flags.steps), flags.record
    variants = [Variant("scout", scout, engine_config.device_memory)]
    if record is not None:
        variants = recorded_variants(variants[0], flags.context)
    device, scaling = find_device(engine_config.device), engine_config.rope_scaling
    loaded = load(flags.model, engine_config.dtype, device, rope_scaling=scaling, weights=engine_config.weights)
    if flags.ablate:
        variants = ablation(scout, loaded.decoder.shape)
    recorders = {variant.name: Recorder() for variant in variants if record is not None}
    with progress() as watch:
        measured = run(loaded, engine_config, texts, lengths, variants=variants, watch=watch, also=recorders)
    if record is not None:
        write_file(record, recording(scout, recorders, (flags.model, texts[0].name), flags.context).to_bytes())
    return measured


def _draw(measured: list[Measured], flags: FidelityFlags, settings: dict[str, Any]) -> None:
    budget = "all tokens" if settings["budget"] is None else f"{settings['budget']:,} tokens"
    about = f"{flags.model}, budget {budget}, {flags.context:,} tokens of context, {flags.steps:,} steps"
    picture = load_action("drawings").fidelity_png(measured, about)
    if flags.plot is not None:
        write_file(flags.plot, picture)
    if flags.html is not None:
        write_file(flags.html, page(measured, picture, settings, shlex.join(["scout", *sys.argv[1:]])).encode())


def _print(measured: list[Measured]) -> None:
    table = PlainTable(*HEADINGS, keys=2)
    lines = rows(measured)
    for line, after in zip(lines, [*lines[1:], [""]], strict=True):
        table.add_row(*line, end_section=line[0] != after[0])
    used = {item.fidelity.calibration: None for item in measured}
    table.caption = f"Calibration: {', '.join(used)}"
    show(table)


def weights(flags: WeightsFlags, kept: Sequence[WeightsName]) -> None:
    """Compare each way to keep the weights with float32."""
    (text,) = read_texts([flags.text]) if flags.text else [prose()]
    with progress() as watch:
        found = compare(flags.model, text, (flags.context, flags.steps), kept, watch)
    if flags.as_json:
        print(json.dumps({"model": flags.model, "text": text.name, "weights": [asdict(row) for row in found]}))
        return
    table = PlainTable("Weights", "Memory", "KL", "KL at most")
    for row in found:
        table.add_row(row.weights, format_bytes(row.nbytes), f"{row.kl_mean:.1e}", f"{row.kl_most:.1e}")
    show(table)
