"""`--trace FILE` of the commands that run an engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...bench.timeline.recorder import Recorder
from ...engine.llm import LLM
from ...trace.chrome import to_json
from ..output import write_file
from ..shell import tell


@contextmanager
def traced(llm: LLM, file: Path | None) -> Iterator[None]:
    """Record the first decode steps of an engine that is closed inside, and write them to `file`, if there is one."""
    if file is None:
        yield
        return
    recorder = Recorder(llm.engine)
    recorder.begin()
    try:
        yield
    finally:
        write_file(file, to_json({"scout": recorder.timeline()}).encode())
        tell(f"{recorder.steps} decode steps are in {file}: see one with `scout trace {file} --html step.html`")
