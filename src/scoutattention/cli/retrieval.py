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
        str,
        flag("--depths", "Places of the fact in the text, in percent: 0 is the start, 100 the end.", metavar="LIST"),
    ] = "0,25,50,75,100"
    tasks: Annotated[
        str | None,
        flag(
            "--tasks",
            "Tasks to run, of single, multikey, multivalue, multiquery, variables, common. Without it: all.",
            metavar="LIST",
        ),
    ] = None
    samples: Annotated[int, flag("--samples", "Prompts for each length, depth and task.")] = 1
    seed: Annotated[int, flag("--seed", "Seed of the prompts.")] = 0
    plot: Plot = None
    ablation: Ablations = None
    as_json: AsJson = False


@takes(RetrievalFlags, ScoutConfig, EngineConfig, device_memory="slots")
def retrieval(call: Call[RetrievalFlags]) -> None:
    """Hide facts in long texts and ask for them, with full attention and with the method.

    A score is the percentage of the expected answers that were found, as in RULER.
    """
    flags = call.flags
    settings = read_settings(call.settings, ablation=flags.ablation or ())
    check_drawing("--plot", flags.plot)
    places = read_numbers("--lengths", flags.lengths), read_numbers("--depths", flags.depths)
    load_action("retrieval").retrieval(flags, places, settings)
