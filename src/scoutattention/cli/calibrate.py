"""`scout calibrate`: fits the corrections of predicted queries on text, once for a model."""

from dataclasses import dataclass
from typing import Annotated

from ..config import RopeScaling
from ..errors import ConfigError
from .command import Call, load_action, takes
from .flags import AsJson, DType, Model, TextFiles, flag
from .settings import read_object


@dataclass(frozen=True)
class CalibrateFlags:
    """The flags of `scout calibrate`."""

    model: Model
    text: TextFiles = None
    tokens: Annotated[int, flag("--tokens", "Tokens to read in all, the same number of each text.")] = 16384
    lookahead: Annotated[
        list[int] | None, flag("--lookahead", "The lookahead to calibrate for; may be repeated. Without it: 1.", min=1)
    ] = None
    dims: Annotated[str, flag("--dims", "Rank of the low-rank corrections, or 'full'.", metavar="NUMBER")] = "256"
    rope_scaling: Annotated[
        str | None,
        flag(
            "--rope-scaling",
            "Rotary scaling, with the keys of `rope_scaling` in config.json.",
            metavar="JSON",
        ),
    ] = None
    dtype: DType = "auto"
    as_json: AsJson = False


def _dims(text: str) -> int | None:
    if text == "full":
        return None
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ConfigError(f"--dims={text!r} is neither a number above 0 nor 'full': give one of them")
    return int(text)


def _rope_scaling(text: str | None) -> RopeScaling:
    if text is None:
        return None
    try:
        return read_object(text)
    except ValueError:
        raise ConfigError(
            f'--rope-scaling={text!r} is not a JSON object: give one such as {{"rope_type": "yarn", "factor": 4.0}}'
        ) from None


@takes(CalibrateFlags)
def calibrate(call: Call[CalibrateFlags]) -> None:
    """Fit corrections that improve predicted queries, on text, and store them for later runs of the model."""
    load_action("calibrate").calibrate(call.flags, _dims(call.flags.dims), _rope_scaling(call.flags.rope_scaling))
