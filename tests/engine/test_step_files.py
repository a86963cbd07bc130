"""docs/architecture.md tells a decode step in the files that it enters."""

import re
import sys
from pathlib import Path

import scoutattention
from scoutattention import SamplingParams, ScoutConfig
from scoutattention.engine.scheduler import Sequence

from .test_generate import PROMPT, far_llm

ROOT = Path(scoutattention.__file__).parent
PAGE = Path(__file__).parents[2] / "docs/architecture.md"
MOST = 24


def files_of_a_step(engine) -> set[str]:
    """The files of the package whose functions are called."""
    entered = set()

    def note(frame, event, argument):
        if event == "call":
            entered.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        engine.step()
    finally:
        sys.setprofile(None)
    return {str(Path(name).relative_to(ROOT)) for name in entered if name.startswith(str(ROOT))}


def told() -> list[str]:
    """The files that the page numbers, in its order."""
    section = PAGE.read_text().split("## A decode step")[1].split("\n## ")[0]
    return re.findall(r"^\d+\. `([\w/]+\.py)`", section, re.MULTILINE)


def test_the_page_tells_the_files_that_steps_enter(tiny_models):
    scout = ScoutConfig().changed(budget=40, block_size=8, true_query_layers=())
    llm = far_llm(str(tiny_models["llama"]), scout, 3)
    llm.engine.add(Sequence(0, PROMPT, SamplingParams(max_tokens=40, ignore_eos=True), 200, llm.tokenizer))
    llm.engine.step()
    store, entered = llm.engine.store, set()
    while llm.engine.busy:
        closes = store.fill[0] + 1 == store.block_size
        files = files_of_a_step(llm.engine)
        if not closes and llm.engine.busy:
            entered |= files
    assert entered == set(told())
    assert len(told()) == len(set(told())) <= MOST
