"""The interface between the server and an engine."""

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

from ..config import SamplingParams
from ..engine.stats import Stats, StepCounts
from ..models.text import Tokenizer


class Chunk(Protocol):
    """A piece of one answer."""

    @property
    def text(self) -> str:
        """Its text, which may be empty."""
        ...

    @property
    def token_ids(self) -> list[int]:
        """Its tokens."""
        ...

    @property
    def finish_reason(self) -> str | None:
        """Why the answer has ended, in its last piece."""
        ...

    @property
    def logprobs(self) -> list[dict[int, float]] | None:
        """For each token, log-probabilities by token id, the token's own first; None where none were asked for."""
        ...

    @property
    def index(self) -> int:
        """Which of the `n` answers to a prompt."""
        ...

    @property
    def prompt_logprobs(self) -> list[dict[int, float] | None] | None:
        """In an answer's first piece, the same for each token of the prompt; None for the first one."""
        ...


class Answer(Protocol):
    """The answers to one prompt, as they are made."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        ...

    @property
    def cached_tokens(self) -> int:
        """Those of them that were kept of earlier prompts; known with the first chunk."""
        ...

    def waits(self, index: int = 0) -> tuple[float, float]:
        """Seconds that an answer waited for its turn, and that its prompt was read; known with its first token."""
        ...

    def cancel(self) -> None:
        """Stop, and free what it holds; safe from any thread, and more than once."""
        ...

    def __aiter__(self) -> AsyncIterator[Chunk]:
        """The pieces of all answers. Raises the ScoutError of an answer that failed."""
        ...


class Reading(NamedTuple):
    """A prompt that is being read.   number: of its request.   done, total: tokens."""

    number: int
    done: int
    total: int


class Tier(NamedTuple):
    """A pool of blocks.   blocks: that it has room for.   used: that are in use.   bytes: its size."""

    blocks: int = 0
    used: int = 0
    bytes: int = 0

    @property
    def share(self) -> float:
        """The part that is in use."""
        return self.used / max(1, self.blocks)


class Memory(NamedTuple):
    """The pages of the host and the slots of the device.   block_size: tokens of a block.

    Without slots, as with `device_memory="all"`, `slots` has room for no block.
    """

    block_size: int
    pages: Tier
    slots: Tier = Tier()


class Engine(Protocol):
    """A model that answers.

    max_len: tokens of the longest sequence.   capacity: tokens of the longest one that memory has room for.
    max_running: sequences that run at once.
    """

    tokenizer: Tokenizer
    max_len: int
    capacity: int
    max_running: int

    def check_ids(self, ids: Sequence[int]) -> list[int]:
        """The ids, if they are a prompt. Raises PromptError."""
        ...

    def submit(self, ids: list[int], params: SamplingParams, *, streamed: bool) -> Answer:
        """Queue a prompt, and return at once. Raises PromptError, ConfigError and CapacityError.

        streamed: whether tokens should come as soon as they can; without, prompts of others are read first.
        """
        ...

    def stats(self) -> Stats:
        """Totals since the model was loaded."""
        ...

    def steps(self) -> StepCounts:
        """Steps since the model was loaded, by the tokens that they completed."""
        ...

    def queue(self) -> tuple[int, int]:
        """Answers that are made, the one whose prompt is being read among them, and answers that wait."""
        ...

    def reading(self) -> Reading | None:
        """The prompt that is being read, if one is."""
        ...

    def residency(self) -> Sequence[float]:
        """Of each layer, the part of a recent step's chosen blocks that the device held; empty where nobody looks."""
        ...

    def memory(self) -> Memory:
        """How much there is of both tiers, and how much of it is in use."""
        ...
