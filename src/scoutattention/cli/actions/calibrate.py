"""What `scout calibrate` does: it fits corrections, stores them, and prints how well they predict."""

import json
from dataclasses import asdict
from pathlib import Path

from ...config import RopeScaling
from ...engine.calibrate import Fit
from ...engine.calibrate import calibrate as fit
from ...errors import ConfigError
from ...eval.text import Text, references, tokens_of_each
from ...models.calibration import default_path, store
from ...models.loader import LoadedModel, load
from ..calibrate import CalibrateFlags
from ..output import PlainTable, progress, show
from .texts import read_texts


def calibrate(flags: CalibrateFlags, dims: int | None, rope_scaling: RopeScaling) -> None:
    """Fit, store and print. dims: of the corrections; None is full rank."""
    texts = read_texts(flags.text) or references()
    done = _fit(load(flags.model, flags.dtype, rope_scaling=rope_scaling), texts, flags, dims)
    if not flags.as_json:
        for item in done:
            _print(*item)
        return
    fits = [
        {"lookahead": fitted.lookahead, "dims": fitted.corrections.left.shape[-1], "file": str(path)}
        | {"layers": [asdict(score) for score in fitted.scores]}
        for fitted, path in done
    ]
    about = {"model": flags.model, "texts": [item.name for item in texts], "tokens": flags.tokens}
    print(json.dumps(about | {"fits": fits}), flush=True)


def _fit(model: LoadedModel, texts: list[Text], flags: CalibrateFlags, dims: int | None) -> list[tuple[Fit, Path]]:
    """Fits, and the files that they are stored in."""
    lookaheads, layers = list(dict.fromkeys(flags.lookahead or [1])), model.decoder.shape.num_layers
    if max(lookaheads) >= layers:
        raise ConfigError(
            f"--lookahead {max(lookaheads)} is more than {layers - 1}, the most that {layers} layers allow"
        )
    ids = tokens_of_each(model.tokenizer, texts, -(-flags.tokens // len(texts)))
    with progress() as watch:
        fits = fit(model.decoder, ids, lookaheads, dims, lambda done, total: watch("calibrating", done, total))
    stored = [(item, default_path(model.decoder, item.lookahead)) for item in fits]
    for item, path in stored:
        store(path, model.decoder, item.lookahead, item.corrections)
    return stored


def _print(fitted: Fit, path: Path) -> None:
    title = f"{fitted.lookahead} ahead, on text that was not fitted to"
    table = PlainTable("Layer", "Cosine, plain", "calibrated", "Error, plain", "calibrated", "", title=title)
    for score in fitted.scores:
        plain, calibrated = score.plain, score.calibrated
        numbers = (f"{value:.3f}" for value in (plain.cosine, calibrated.cosine, plain.error, calibrated.error))
        table.add_row(str(score.layer), *numbers, "" if score.kept else "not kept")
    table.caption = f"Stored in {path}"
    show(table)
