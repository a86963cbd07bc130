"""`scout trace`: a decode step of a timeline as a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from ..trace.chrome import from_json
from ..trace.html import to_html
from ..trace.picture import draw_step
from .command import Call, load_action, takes
from .flags import flag
from .output import check_drawing, check_writable, write_file


@dataclass(frozen=True)
class TraceFlags:
    """The flags of `scout trace`."""

    file: Annotated[Path, typer.Argument(help="A file that `--trace` of another command wrote.", show_default=False)]
    html: Annotated[Path | None, flag("--html", "Write the picture to this HTML file.", metavar="FILE")] = None
    png: Annotated[Path | None, flag("--png", "Write the picture to this PNG file.", metavar="FILE")] = None
    step: Annotated[
        int | None,
        flag("--step", "Number of the decode step, from 1. Without it: the step of median length.", metavar="N"),
    ] = None


@takes(TraceFlags)
def trace(call: Call[TraceFlags]) -> None:
    """Draw a timeline of one decode step: the work of device, CPU workers and link, and the times that one waited.

    FILE comes from `scout generate`, `scout serve` or `scout bench decode` with --trace. Without --html and --png the
    command only prints how much CPU time overlapped with the device, and how long the device waited.
    """
    flags = call.flags
    check_writable("--html", flags.html)
    check_drawing("--png", flags.png)
    try:
        picture = draw_step(from_json(flags.file.read_bytes()), flags.step)
    except OSError as error:
        raise ConfigError(f"cannot read {flags.file}: {error.strerror}") from error
    except ConfigError as error:
        raise ConfigError(f"{flags.file} cannot be drawn: {error}") from error
    for title in picture.titles:
        print(title, flush=True)
    if flags.html is not None:
        write_file(flags.html, to_html(picture).encode())
    if flags.png is not None:
        write_file(flags.png, load_action("drawings").timeline_png(picture))
