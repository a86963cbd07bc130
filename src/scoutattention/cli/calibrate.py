"""`scout calibrate`: fit on text, once for a model, the corrections from which better queries are predicted."""

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
    tokens: Annotated[int, flag("--tokens", "Tokens to read, equally many of each text.")] = 16384
    lookahead: Annotated[
        list[int] | None, flag("--lookahead", "The lookahead to calibrate for; may be repeated. Without it: 1.", min=1)
    ] = None
    dims: Annotated[str, flag("--dims", "Dimensions of the low-rank corrections, or 'full'.", metavar="NUMBER")] = "256"
    rope_scaling: Annotated[
        str | None,
        flag(
            "--rope-scaling",
            "How positions are rotated, in the words of config.json.",
            metavar="JSON",
        ),
    ] = None
    dtype: DType = "auto"
    as_json: AsJson = False


def _dims(text: str) -> int | None:
    if text == "full":
        return None
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ConfigError(f"--dims={text!r} is neither a number above 0 nor 'full'")
    return int(text)


def _rope_scaling(text: str | None) -> RopeScaling:
    if text is None:
        return None
    try:
        return read_object(text)
    except ValueError:
        raise ConfigError(f"--rope-scaling={text!r} is not a JSON object") from None


@takes(CalibrateFlags)
def calibrate(call: Call[CalibrateFlags]) -> None:
    """Fit corrections on text that make queries more predictable, and store them where the model finds them."""
    load_action("calibrate").calibrate(call.flags, _dims(call.flags.dims), _rope_scaling(call.flags.rope_scaling))
