"""Ask one question about a long document twice: with full attention, and with most of the KV cache on the host only.

The document is prose from Python's language reference with one foreign sentence in its middle. Both runs use the same
model, engine and kernels, and differ in their settings alone. Takes about two minutes on two CPU cores. Exit code 1 if
full attention finds the sentence and ScoutAttention does not.
"""

import os
import sys
from dataclasses import dataclass
from pydoc_data.topics import topics

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before PyTorch: waiting threads must not take the workers' cores

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from scoutattention import LLM, SamplingParams, ScoutConfig, Stats

FACT = "Captain Ahlers hid the treasure under the red lighthouse on the northern cliff."
QUESTION = "Where did Captain Ahlers hide the treasure?"
EXPECTED = "red lighthouse"
DOCUMENT_CHARS = 31_000  # about 7,000 of the 8,192 tokens that the model can take
MIB = 1024**2


@dataclass(frozen=True)
class Run:
    """One way of answering, and what came of it."""

    name: str
    answer: str
    stats: Stats

    @property
    def found(self) -> bool:
        """Whether the answer holds the fact."""
        return EXPECTED in self.answer.lower()


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


def ask(name: str, prompt: str, scout: ScoutConfig, device_memory: str) -> Run:
    """Answer `prompt` with a fresh engine."""
    llm = LLM("smollm2", scout=scout, device_memory=device_memory, max_num_seqs=1)
    pieces = []
    print(f"{name} reads the prompt; on two cores that takes about a minute.", flush=True)
    with Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task(name, total=None)
        chunks = llm.stream(
            prompt,
            SamplingParams(max_tokens=48),
            chat=True,
            on_prompt=lambda done, total: progress.update(task, completed=done, total=total),
        )
        pieces.extend(chunk.text for chunk in chunks)
    llm.close()
    return Run(name, "".join(pieces), llm.stats())


def compare(runs: list[Run]) -> Table:
    """The runs side by side."""
    table = Table("", *(run.name for run in runs), title=QUESTION)
    rows = {
        "answer": lambda run: run.answer,
        "right": lambda run: "yes" if run.found else "no",
        "prompt": lambda run: f"{run.stats.prompt_tokens:,} tokens, read in {run.stats.ttft_s:.0f} s",
        "KV cache": lambda run: f"{run.stats.kv_bytes_total / MIB:.0f} MiB",
        "of it in the device tier": lambda run: f"{run.stats.kv_bytes_device / MIB:.0f} MiB",
        "decoding": lambda run: f"{run.stats.tokens_per_s:.1f} tokens/s",
        "CPU's share of chosen blocks": lambda run: f"{run.stats.cpu_share:.1%}",
        "CPU time hidden, waited for": lambda run: (
            f"{1000 * run.stats.hidden_cpu_s:.1f} ms, {1000 * run.stats.unhidden_cpu_s:.1f} ms"
        ),
    }
    for title, cell in rows.items():
        table.add_row(title, *(cell(run) for run in runs))
    return table


def main() -> int:
    """Run both, show both."""
    prompt = f"Here are some notes.\n\n{make_document(DOCUMENT_CHARS)}\n\n{QUESTION}"
    dense = ask("full attention", prompt, ScoutConfig(budget=None), "all")
    scout = ask("ScoutAttention", prompt, ScoutConfig(budget=1024), "64MiB")
    Console().print(compare([dense, scout]))
    return 1 if dense.found and not scout.found else 0


if __name__ == "__main__":
    sys.exit(main())
