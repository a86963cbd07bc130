"""`scout eval retrieval`: what is found in long prompts, with full attention and with the method."""

from dataclasses import dataclass
from typing import Annotated

from ..config import EngineConfig, ScoutConfig
from .command import Call, load_action, takes
from .flags import Ablations, AsJson, Model, Plot, flag
from .inputs import read_numbers
from .output import check_drawing
from .settings import read_settings


@dataclass(frozen=True)
class RetrievalFlags:
    """The flags of `scout eval retrieval`, beside the settings."""

    model: Model
    lengths: Annotated[str, flag("--lengths", "Prompt lengths in tokens, question included.", metavar="LIST")] = (
        "1024,2048,4096"
    )
    depths: Annotated[
        str, flag("--depths", "Where the answer is, in percent of the text before it.", metavar="LIST")
    ] = "0,25,50,75,100"
    tasks: Annotated[
        str | None, flag("--tasks", "Of single, multikey, multivalue, multiquery, variables, common.", metavar="LIST")
    ] = None
    samples: Annotated[int, flag("--samples", "Prompts for each length, depth and task.")] = 1
    seed: Annotated[int, flag("--seed", "Another number makes other prompts.")] = 0
    plot: Plot = None
    ablation: Ablations = None
    as_json: AsJson = False


@takes(RetrievalFlags, ScoutConfig, EngineConfig, device_memory="slots")
def retrieval(call: Call[RetrievalFlags]) -> None:
    """Hide facts in long texts and ask for them, with full attention and with the method.

    Scores are percentages of the expected answers that were found, as RULER counts them.
    """
    flags = call.flags
    settings = read_settings(call.settings, ablation=flags.ablation or ())
    check_drawing("--plot", flags.plot)
    places = read_numbers("--lengths", flags.lengths), read_numbers("--depths", flags.depths)
    load_action("retrieval").retrieval(flags, places, settings)
