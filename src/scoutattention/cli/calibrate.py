"""`scout calibrate`: fit on text, once for a model, what makes its layers' queries predictable."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import DTypeName
from ..errors import ConfigError
from .fidelity import watched
from .generate import AsJson, Debug, Model
from .output import show
from .prompt import read_file
from .report import plain_table

if TYPE_CHECKING:
    from ..engine.calibrate import Fit
    from ..eval.text import Text
    from ..models.loader import LoadedModel

TextFiles = Annotated[
    list[Path] | None,
    typer.Option("--text", help="A UTF-8 file to fit to; may be repeated. Without it, Python's own texts."),
]
Tokens = Annotated[int, typer.Option("--tokens", help="Tokens to read, equally many of each text.")]
Lookahead = Annotated[
    list[int] | None,
    typer.Option("--lookahead", help="Layers ahead to calibrate for; may be repeated. Without it, 1.", min=1),
]
Dims = Annotated[str, typer.Option("--dims", help="Dimensions of the low-rank corrections, or 'full'.")]
DType = Annotated[DTypeName, typer.Option("--dtype", help="Number format of the weights; 'auto' is the checkpoint's.")]


def _dims(text: str) -> int | None:
    if text == "full":
        return None
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ConfigError(f"--dims={text!r} is neither a number above 0 nor 'full'")
    return int(text)


def _texts(files: list[Path] | None) -> "list[Text]":
    # Inside, since it loads PyTorch with the tokenizer.
    from ..eval.text import Text, references  # noqa: PLC0415

    if not files:
        return references()
    return [Text(str(file), read_file(file, "text file")) for file in dict.fromkeys(files)]


def _fit(
    model: "LoadedModel", texts: "list[Text]", tokens: int, lookaheads: list[int], dims: int | None
) -> "list[tuple[Fit, Path]]":
    """Fits, and the files they are stored in."""
    # Inside, so that help and wrong arguments need not load PyTorch, which takes seconds.
    from ..engine.calibrate import calibrate as fit  # noqa: PLC0415
    from ..eval.text import tokens_of_each  # noqa: PLC0415
    from ..models.calibration import default_path, store  # noqa: PLC0415

    ids = tokens_of_each(model.tokenizer, texts, -(-tokens // len(texts)))
    with watched() as watch:
        fits = fit(model.decoder, ids, lookaheads, dims, lambda done, total: watch("calibrating", done, total))
    paths = [default_path(model.decoder, item.lookahead) for item in fits]
    for item, path in zip(fits, paths, strict=True):
        store(path, model.decoder, item.lookahead, item.corrections)
    return list(zip(fits, paths, strict=True))


def _print(fitted: "Fit", path: Path) -> None:
    table = plain_table("Layer", "Cosine, plain", "calibrated", "Error, plain", "calibrated", "")
    for score in fitted.scores:
        plain, calibrated = score.plain, score.calibrated
        numbers = (f"{value:.3f}" for value in (plain.cosine, calibrated.cosine, plain.error, calibrated.error))
        table.add_row(str(score.layer), *numbers, "" if score.kept else "not kept")
    table.title, table.title_justify = f"{fitted.lookahead} ahead, on text that was not fitted to", "left"
    table.caption, table.caption_justify = f"Stored in {path}", "left"
    show(table)


def calibrate(
    context: typer.Context,
    model: Model,
    *,
    text: TextFiles = None,
    tokens: Tokens = 16384,
    lookahead: Lookahead = None,
    dims: Dims = "256",
    dtype: DType = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Fit on text what makes a model's layers predictable, and store it where the model finds it from then on."""
    context.obj.debug = debug
    wanted, lookaheads, texts = _dims(dims), list(dict.fromkeys(lookahead or [1])), _texts(text)
    from ..models.loader import load  # noqa: PLC0415

    done = _fit(load(model, dtype), texts, tokens, lookaheads, wanted)
    if as_json:
        about = {"model": model, "texts": [item.name for item in texts], "tokens": tokens}
        fits = [
            {"lookahead": fitted.lookahead, "dims": fitted.corrections.left.shape[-1], "file": str(path)}
            | {"layers": [asdict(score) for score in fitted.scores]}
            for fitted, path in done
        ]
        print(json.dumps(about | {"fits": fits}), flush=True)
    else:
        for item in done:
            _print(*item)
