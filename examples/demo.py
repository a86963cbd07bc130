"""Ask one question about a long document three times: with full attention, and with ScoutAttention in two settings.

The document is prose from Python's language reference with one foreign sentence in its middle. The runs use the same
model, engine and kernels; only their settings differ. Each run has a process of its own, so that its memory is its
own. Exit code 1 if an answer is wrong.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
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
TOKENS = 64  # of each run, so that its speed is the mean of as many steps; the answer is the first line
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


def ask(setting: Setting, prompt: str) -> Run:
    """Answer `prompt` with a fresh engine."""
    llm = LLM("smollm2", scout=ScoutConfig(budget=setting.budget), device_memory=setting.device_memory, max_num_seqs=1)
    with Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task(f"{setting.name} reads the prompt", total=None)
        chunks = llm.stream(
            prompt,
            SamplingParams(max_tokens=TOKENS, ignore_eos=True),
            chat=True,
            on_prompt=lambda done, total: progress.update(task, completed=done, total=total),
        )
        text = "".join(chunk.text for chunk in chunks)
    stats, shape = llm.stats(), llm.engine.runner.decoder.shape
    llm.close()
    block = shape.block_bytes(ScoutConfig().block_size) / (shape.num_layers * shape.num_kv_heads)
    read = (stats.near_blocks + stats.far_blocks) * block / stats.decode_tokens
    return Run(setting, text.strip().partition("\n")[0], stats, read, peak_memory())


def compare(runs: list[Run]) -> Table:
    """The runs side by side."""
    table = Table("", *(run.setting.name for run in runs), title=QUESTION)
    rows: dict[str, Callable[[Run], str]] = {
        "answer": lambda run: run.answer,
        "right": lambda run: "yes" if run.right else "no",
        "prompt": lambda run: f"{run.stats.prompt_tokens:,} tokens, read in {run.stats.ttft_s:.0f} s",
        "decode speed": lambda run: f"{run.stats.tokens_per_s:.1f} tokens/s",
        "KV cache": lambda run: f"{run.stats.kv_bytes_total / MIB:.0f} MiB",
        "... on the device": lambda run: f"{run.stats.kv_bytes_device / MIB:.0f} MiB",
        "... read per decode step": lambda run: f"{run.read / MIB:.0f} MiB",
        "CPU's share of the chosen blocks": lambda run: f"{run.stats.cpu_share:.1%}",
        "peak memory of the process": lambda run: f"{run.peak / MIB:,.0f} MiB",
    }
    for title, cell in rows.items():
        table.add_row(title, *(cell(run) for run in runs))
    table.caption = (
        "Read per decode step: chosen blocks x bytes of a block. Digests, a tenth of the cache, come on top."
    )
    return table


def gain(full: Run, scout: Run, small: Run) -> str:
    """What the numbers say, in a sentence."""
    read, speed = scout.read / full.read, scout.stats.tokens_per_s / full.stats.tokens_per_s
    held = small.stats.kv_bytes_device / small.stats.kv_bytes_total
    return (
        f"ScoutAttention found the same sentence while it read {read:.0%} of the KV cache in a decode step, at "
        f"{speed:.2f} times the speed of full attention; with a small device it needed room there for {held:.0%} of "
        "the cache."
    )


def main() -> int:
    """Run every setting, one after the other, and show all of them."""
    prompt = f"Here are some notes.\n\n{make_document(DOCUMENT_CHARS)}\n\n{QUESTION}"
    runs = []
    for setting in SETTINGS:
        print(f"{setting.name} reads the prompt and answers: up to half a minute on two cores.", flush=True)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            runs.append(process.submit(ask, setting, prompt).result())
    console = Console()
    console.print(compare(runs))
    wrong = [run.setting.name for run in runs if not run.right]
    console.print(f"Wrong answer: {', '.join(wrong)}." if wrong else gain(*runs))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
