"""Flags that several commands have."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import DTypeName


def flag(name: str, text: str, **about: Any) -> Any:  # noqa: ANN401  # Typer's own type depends on the default
    """An option with its help text; `about` are other arguments of `typer.Option`."""
    return typer.Option(name, help=text, **about)


Model = Annotated[str, typer.Argument(help="A folder, a .gguf file, a hub name, or 'smollm2'.", show_default=False)]
System = Annotated[str | None, flag("--system", "The system prompt.", metavar="TEXT")]
Messages = Annotated[
    Path | None,
    flag("--messages", 'A conversation: JSON as [{"role": ..., "content": ...}, ...].', metavar="FILE"),
]
DENSE = "Full attention, with the whole KV cache on the device."
Dense = Annotated[bool, flag("--dense", DENSE, envvar="SCOUT_DENSE", show_envvar=False)]
HiddenDense = Annotated[bool, flag("--dense", DENSE, envvar="SCOUT_DENSE", show_envvar=False, hidden=True)]
Auto = Annotated[bool, flag("--auto", "Let `scout plan` choose full attention or scout.")]
AsJson = Annotated[bool, flag("--json", "Print one JSON object instead.")]
Plot = Annotated[Path | None, flag("--plot", "Draw the results into this PNG file.", metavar="FILE")]
TRACE = "Write a timeline of the first decode steps, for `scout trace` and Perfetto."
Trace = Annotated[Path | None, flag("--trace", TRACE, metavar="FILE")]
HiddenTrace = Annotated[Path | None, flag("--trace", TRACE, metavar="FILE", hidden=True)]
TextFiles = Annotated[
    list[Path] | None,
    flag(
        "--text", "UTF-8 text to read; may be repeated. Without it: Python's documentation and sources.", metavar="FILE"
    ),
]
Ablations = Annotated[
    list[str] | None,
    flag(
        "--ablation", "Change one idea of the method, for example digest=minmax; may be repeated.", metavar="NAME=VALUE"
    ),
]
DType = Annotated[
    DTypeName, flag("--dtype", "Number format of weights and KV cache; 'auto': the checkpoint's.", hidden=True)
]
