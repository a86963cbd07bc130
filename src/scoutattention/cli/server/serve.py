"""`scout serve`: a model behind HTTP."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated

from ...config import EngineConfig, ScoutConfig
from ...errors import ConfigError
from ..command import Call, load_action, read_choice, takes
from ..flags import Auto, HiddenDense, HiddenTrace, Model, flag
from ..output import check_writable
from ..settings import settings_of, variable_of

NEEDED = ("fastapi", "uvicorn", "prometheus_client")
MaxNumSeqs = Annotated[
    int,
    flag(
        "--max-num-seqs",
        settings_of(EngineConfig)["max_num_seqs"][1].help,
        min=1,
        envvar=variable_of("max_num_seqs"),
        show_envvar=False,
    ),
]


@dataclass(frozen=True)
class ServeFlags:
    """The flags of `scout serve`, beside the settings."""

    model: Model
    host: Annotated[str, flag("--host", "The address to listen at.")] = "127.0.0.1"
    port: Annotated[int, flag("--port", "The port; 0 takes a free one.", min=0, max=65535)] = 8000
    api_key: Annotated[
        str | None,
        flag(
            "--api-key",
            "What clients must send as 'Authorization: Bearer KEY'; or SCOUT_API_KEY in the environment.",
            metavar="KEY",
            envvar="SCOUT_API_KEY",
            show_envvar=False,
        ),
    ] = None
    allow_no_key: Annotated[
        bool,
        flag("--allow-no-key", "Let other computers in without a key: whoever reaches the port may ask.", hidden=True),
    ] = False
    served_model_name: Annotated[
        str | None, flag("--served-model-name", "What clients call the model. Without it: MODEL.", metavar="NAME")
    ] = None
    max_num_seqs: MaxNumSeqs = EngineConfig().max_num_seqs
    max_waiting: Annotated[
        int, flag("--max-waiting", "Answers that wait for others to end; more get status 429.", min=0, hidden=True)
    ] = 256
    dense: HiddenDense = False
    auto: Auto = False
    trace: HiddenTrace = None


@takes(ServeFlags, ScoutConfig, EngineConfig)
def serve(call: Call[ServeFlags]) -> None:
    """Answer requests over HTTP as OpenAI's API does, until Ctrl-C or SIGTERM.

    docs/server.md lists what requests may say. The dashboard at / shows what the server does.
    """
    flags = call.flags
    if flags.api_key is not None and not flags.api_key.strip():
        raise ConfigError("--api-key is empty: give a key, or leave the flag out")
    check_writable("--trace", flags.trace)
    refuse_without_server()
    load_action("serve").serve(flags, read_choice(call))


def refuse_without_server() -> None:
    """Raises ConfigError where what a server needs is not installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f"a server needs {', '.join(missing)}: run pip install 'scout-attention[server]'")
