"""Ask one question about a long document three times: with full attention, and with ScoutAttention in two settings.

The document is prose from Python's language reference with one foreign sentence in its middle. The runs use the same
model, engine and kernels; only their settings differ. Each run has a process of its own, whose memory is told. The
processes decode in turns, so that what disturbs the machine disturbs all of them. Exit code 1 if an answer is wrong.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pydoc_data.topics import topics

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before PyTorch: waiting threads must not take the workers' cores

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from scoutattention import LLM, SamplingParams, ScoutConfig, Stats
from scoutattention.hardware.host import peak_memory

FACT = "Captain Ahlers hid the treasure under the red lighthouse on the northern cliff."
QUESTION = "Where did Captain Ahlers hide the treasure?"
EXPECTED = "red lighthouse"
DOCUMENT_CHARS = 24_000  # about 5,400 tokens, of the 8,192 that the model can take
TURNS, TURN = 8, 8  # of each run: turns, and decode steps of a turn; the answer is the first line of the text
MIB = 1024**2


@dataclass(frozen=True)
class Setting:
    """One way of answering.   device_memory: None keeps the whole KV cache in one memory."""

    name: str
    budget: int | None
    device_memory: str | None


@dataclass(frozen=True)
class Run:
    """What came of a setting.   read: bytes of the KV cache read in a decode step.   peak: of the process's memory."""

    setting: Setting
    answer: str
    stats: Stats
    read: float
    peak: int

    @property
    def right(self) -> bool:
        """Whether the answer holds the fact."""
        return EXPECTED in self.answer.lower()


SETTINGS = (
    Setting("full attention", None, "all"),
    Setting("ScoutAttention, budget 2048", 2048, None),
    Setting("small device, budget 1024", 1024, "slots"),
)


def make_document(chars: int) -> str:
    """About `chars` characters of prose from Python's language reference, with FACT in the middle."""
    paragraphs, length = [], 0
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            prose = paragraph[:1].isalpha() and len(paragraph) > 200 and "::=" not in paragraph
            if prose and length < chars:
                paragraphs.append(" ".join(paragraph.split()))
                length += len(paragraphs[-1])
    paragraphs.insert(len(paragraphs) // 2, FACT)
    return "\n\n".join(paragraphs)


def serve(pipe: Connection, setting: Setting, prompt: str) -> None:
    """Read `prompt` with a fresh engine, then decode TURN tokens for each True that is received; at last send a Run."""
    llm = LLM("smollm2", scout=ScoutConfig(budget=setting.budget), device_memory=setting.device_memory, max_num_seqs=1)
    with Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task(setting.name, total=None)
        chunks = llm.stream(
            prompt,
            SamplingParams(max_tokens=1 + TURNS * TURN, ignore_eos=True),
            chat=True,
            on_prompt=lambda done, total: progress.update(task, completed=done, total=total),
        )
        text = next(chunks).text
    pipe.send("the prompt is read")
    while pipe.recv():
        text += "".join(chunk.text for chunk in islice(chunks, TURN))
        pipe.send("a turn is over")
    stats, shape = llm.stats(), llm.engine.runner.decoder.shape
    block = shape.block_bytes(ScoutConfig().block_size) / (shape.num_layers * shape.num_kv_heads)
    read = (stats.near_blocks + stats.far_blocks) * block / stats.decode_tokens
    pipe.send(Run(setting, text.strip().partition("\n")[0], stats, read, peak_memory()))


def run_all(prompt: str) -> list[Run]:
    """Each setting in a process of its own: one reads after the other, and then they decode in turns."""
    spawn, pipes = multiprocessing.get_context("spawn"), []
    for setting in SETTINGS:
        print(f"{setting.name}: reads the prompt, up to half a minute on two cores", flush=True)
        here, there = spawn.Pipe()
        spawn.Process(target=serve, args=(there, setting, prompt), daemon=True).start()
        there.close()
        here.recv()
        pipes.append(here)
    for pipe in pipes * TURNS:
        pipe.send(True)
        pipe.recv()
    for pipe in pipes:
        pipe.send(False)
    return [pipe.recv() for pipe in pipes]


def compare(runs: list[Run]) -> Table:
    """The runs side by side."""
    table = Table("", *(run.setting.name for run in runs), title=QUESTION)
    rows: dict[str, Callable[[Run], str]] = {
        "answer": lambda run: run.answer,
        "right": lambda run: "yes" if run.right else "no",
        "prompt": lambda run: f"{run.stats.prompt_tokens:,} tokens, read in {run.stats.ttft_s:.0f} s",
        "decode speed": lambda run: f"{run.stats.tokens_per_s:.1f} tokens/s",
        "KV cache": lambda run: f"{run.stats.kv_bytes_total / MIB:.0f} MiB",
        "... that a GPU would hold": lambda run: f"{run.stats.kv_bytes_device / MIB:.0f} MiB",
        "... read per decode step": lambda run: f"{run.read / MIB:.0f} MiB",
        "CPU share of chosen blocks": lambda run: f"{run.stats.cpu_share:.1%}",
        "peak memory of the process": lambda run: f"{run.peak / MIB:,.0f} MiB",
    }
    for title, cell in rows.items():
        table.add_row(title, *(cell(run) for run in runs))
    table.caption = (
        "Read per decode step: chosen blocks x bytes of a block. "
        "Scoring the digests reads about a twentieth of the cache on top. "
        "Here the CPU is the device too, with one memory for both: slots are copies in it, and save none. "
        "The speed of one sequence hardly changes, because a step of this model reads more weights than cache."
    )
    return table


def gain(full: Run, scout: Run, small: Run) -> str:
    """What the numbers say, in a sentence."""
    read, speed = scout.read / full.read, scout.stats.tokens_per_s / full.stats.tokens_per_s
    held = small.stats.kv_bytes_device / small.stats.kv_bytes_total
    return (
        f"ScoutAttention gave the right answer and read {read:.0%} of the KV cache in a decode step, at "
        f"{speed:.2f} times the speed of full attention. A GPU in the third setting would hold {held:.0%} of the cache."
    )


def main() -> int:
    """Run every setting, one after the other, and show all of them."""
    prompt = f"Here are some notes.\n\n{make_document(DOCUMENT_CHARS)}\n\n{QUESTION}"
    runs = run_all(prompt)
    console = Console()
    console.print(compare(runs))
    wrong = [run.setting.name for run in runs if not run.right]
    console.print(f"Wrong answer: {', '.join(wrong)}." if wrong else gain(*runs))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
