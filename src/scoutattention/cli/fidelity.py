"""`scout eval fidelity` and `scout eval weights`: what the method and few bits change, on real text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..config import EngineConfig, ScoutConfig, WeightsName
from ..errors import ConfigError
from ..eval.fidelity.ablation import SET_BY_ROWS
from .command import Call, load_action, takes
from .flags import Ablations, AsJson, Model, Plot, TextFiles, flag
from .inputs import read_words
from .output import check_drawing, check_writable
from .settings import flag_of, read_settings

KEPT: tuple[WeightsName, ...] = ("auto", "int8", "int4")
"""Ways to keep weights that are compared: "bf16" is a dtype of the cache as well."""


@dataclass(frozen=True)
class FidelityFlags:
    """The flags of `scout eval fidelity`, beside the settings."""

    model: Model
    text: TextFiles = None
    context: Annotated[int, flag("--context", "Length of the prompt: tokens from the start of each text.")] = 4096
    steps: Annotated[int, flag("--steps", "Tokens after the prompt that are fed and compared.")] = 64
    ablate: Annotated[
        bool, flag("--ablate", "Compare the published design, each improvement alone, and all of them.")
    ] = False
    ablation: Ablations = None
    as_json: AsJson = False
    plot: Plot = None
    html: Annotated[Path | None, flag("--html", "Write a report with plots to this HTML file.", metavar="FILE")] = None
    record: Annotated[
        Path | None,
        flag("--record", "Record the chosen blocks in this file, for `scout bench gpu --replay`.", metavar="FILE"),
    ] = None


def _check_ablate(call: Call[FidelityFlags]) -> None:
    """Raises ConfigError where a flag sets what --ablate sets itself."""
    flags = [flag_of(name) for name in SET_BY_ROWS if name in call.given]
    pairs = [f"--ablation {pair}" for pair in call.flags.ablation or () if pair.partition("=")[0] in SET_BY_ROWS]
    for written in (*flags, *pairs):
        raise ConfigError(f"--ablate sets a value of its own in each row: leave out {written}")


def _check_record(flags: FidelityFlags) -> None:
    """Raises ConfigError where a flag changes what --record runs."""
    check_writable("--record", flags.record)
    if flags.ablate or any(pair.startswith("predictor") for pair in flags.ablation or ()):
        raise ConfigError(
            "--record runs both predictors and nothing else: leave out --ablation predictor=... and --ablate"
        )
    if flags.text is not None and len(flags.text) > 1:
        raise ConfigError(f"--record takes one text, and there are {len(flags.text)}: give --text once")


@takes(FidelityFlags, ScoutConfig, EngineConfig, device_memory="slots")
def fidelity(call: Call[FidelityFlags]) -> None:
    """Compare next-token predictions with those of full attention, on real text (teacher forcing)."""
    flags = call.flags
    if flags.ablate:
        _check_ablate(call)
    settings = read_settings(call.settings, ablation=flags.ablation or ())
    check_drawing("--plot", flags.plot)
    check_drawing("--html", flags.html, ".html")
    if flags.record is not None:
        _check_record(flags)
    load_action("fidelity").fidelity(flags, settings)


@dataclass(frozen=True)
class WeightsFlags:
    """The flags of `scout eval weights`."""

    model: Model
    text: Annotated[Path | None, flag("--text", "UTF-8 text to read. Without it: Python's documentation.")] = None
    context: Annotated[int, flag("--context", "Length of the prompt: tokens from the start of the text.")] = 64
    steps: Annotated[int, flag("--steps", "Tokens after the prompt that are fed and compared.")] = 256
    weights: Annotated[
        str, flag("--weights", "Weights to compare with float32: 'auto', 'int8' or 'int4'.", metavar="LIST")
    ] = "auto"
    as_json: AsJson = False


@takes(WeightsFlags)
def weights(call: Call[WeightsFlags]) -> None:
    """Compare next-token predictions of quantised weights with those of float32 weights, with full attention."""
    load_action("fidelity").weights(call.flags, read_words("--weights", call.flags.weights, KEPT))
