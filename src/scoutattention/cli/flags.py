"""Flags that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from ..config import DTypeName

Model = Annotated[str, typer.Argument(help="A folder, a .gguf file, a hub name, or 'smollm2'.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
Plot = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw the results into this PNG file.")]
Trace = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE", help="Write where each step's time went, for Perfetto."),
]
TextFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--text", metavar="FILE", help="UTF-8 text to read; may be repeated. Without it: Python's documentation."
    ),
]
Ablations = Annotated[
    list[str] | None,
    typer.Option(
        "--ablation", metavar="NAME=VALUE", help="Change one idea of the method, as digest=minmax; may be repeated."
    ),
]
DType = Annotated[
    DTypeName,
    typer.Option("--dtype", help="Number format of weights and KV cache; 'auto': the checkpoint's.", hidden=True),
]
