"""What the server asks of a model, and how an `LLM` does it."""

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

from ..config import SamplingParams
from ..engine.stats import Stats
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

    def cancel(self) -> None:
        """Stop, and free what it holds; safe from any thread, and more than once."""
        ...

    def __aiter__(self) -> AsyncIterator[Chunk]:
        """The pieces of all answers. Raises the ScoutError of an answer that failed."""
        ...


class Memory(NamedTuple):
    """The memory of both tiers.   pages_used, slots_used: the parts that are in use, 1 for all.

    Where there are no slots, as on a CPU that holds everything, these are 0.
    """

    pages_bytes: int
    pages_used: float
    slots_bytes: int
    slots_used: float


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

    def queue(self) -> tuple[int, int]:
        """Answers that are made, the one whose prompt is being read among them, and answers that wait."""
        ...

    def memory(self) -> Memory:
        """How much there is of both tiers, and how much of it is in use."""
        ...
