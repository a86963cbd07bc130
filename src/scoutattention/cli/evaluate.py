"""`scout eval`: what the method costs in accuracy."""

import typer

from .fidelity import fidelity
from .retrieval import retrieval

app = typer.Typer(
    help="Measure what the method costs in accuracy.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(fidelity)
app.command()(retrieval)


@app.callback()
def _common() -> None:
    pass
