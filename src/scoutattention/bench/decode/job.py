"""What an engine of the decode benchmark is given and must do. No PyTorch, for the process of llama.cpp has none."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from ...config import DTypeName, ScoutConfig
from ...trace.timeline import Timeline


@dataclass(frozen=True)
class DecodeJob:
    """Prompts to read and to continue, one for each sequence.

    model: its directory in the layout of Hugging Face, or its .gguf file; gguf: the latter, or None.
    dtype: of weights and KV cache, except of weights in engines that keep the file's; not "auto".
    prompts: token ids, all prompts of one length.   max_len: tokens that a sequence may become.
    scout: of the engines that have a budget.   slots: of `scout-slots`, as a multiple of the budget.
    threads: that may be used.
    """

    model: Path
    gguf: Path | None
    dtype: DTypeName
    prompts: tuple[tuple[int, ...], ...]
    max_len: int
    scout: ScoutConfig
    slots: float
    threads: int


class Setup(NamedTuple):
    """What an engine runs with: the formats of its weights and cache.   calibration: see `Engine`; None elsewhere."""

    dtype: str
    cache_dtype: str
    calibration: str | None = None


class Far(NamedTuple):
    """What the CPU did in a step for blocks without a slot.

    hidden_s, unhidden_s, chosen_blocks, far_blocks: see `StepStats`.
    """

    hidden_s: float
    unhidden_s: float
    chosen_blocks: int
    far_blocks: int


class Timed(NamedTuple):
    """A step.   far: None where the engine has no slots, or a slot for every block."""

    seconds: float
    far: Far | None


class Traced(NamedTuple):
    """Steps of which a timeline tells.

    seconds, plain_s: of each of these steps, and of the steps between them that nobody watched.
    """

    timeline: Timeline
    seconds: list[float]
    plain_s: list[float]


class Decoding(Protocol):
    """An engine with its sequences."""

    def setup(self) -> Setup:
        """The set-up that the engine runs with."""
        ...

    def read(self) -> None:
        """Read every prompt, and know each sequence's first new token."""
        ...

    def step(self) -> Far | None:
        """Feed each sequence's last token, and choose its next, the likeliest; see `Timed`."""
        ...

    def answers(self) -> list[list[int]]:
        """The new tokens of each sequence so far."""
        ...

    def traced_steps(self, count: int) -> Traced | None:
        """So many steps of which a timeline tells, and as many beside them; None, and no step, where there is none."""
        return None
