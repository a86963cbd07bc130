"""`scout bench`: how fast it is on this machine."""

import typer

from .bench_decode import decode
from .bench_gpu import gpu
from .bench_kernels import kernels

app = typer.Typer(
    help="Measure speed on this machine.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(kernels)
app.command()(decode)
app.command()(gpu)


@app.callback()
def _common() -> None:
    pass
