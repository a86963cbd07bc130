"""One request's tokens and their progress."""

import time
from dataclasses import dataclass, field

import torch

from ..config import SamplingParams
from ..models.text import Tokenizer


@dataclass
class Sequence:
    """A request from its arrival to its end; only the engine changes it.

    limit: longest the sequence may become, prompt and answer together.
    """

    id: int
    prompt_ids: list[int]
    params: SamplingParams
    limit: int
    tokenizer: Tokenizer
    output_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    arrived: float = field(default_factory=time.perf_counter)
    first_token_at: float | None = None

    def __post_init__(self) -> None:
        self._stream = self.tokenizer.stream()
        self.generator = torch.Generator()
        if self.params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.params.seed)

    @property
    def num_tokens(self) -> int:
        """Tokens so far, prompt and answer."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def last_token(self) -> int:
        """The token to be fed next."""
        return self.output_ids[-1] if self.output_ids else self.prompt_ids[-1]

    @property
    def ttft_s(self) -> float:
        """Seconds from arrival to the first token."""
        return 0.0 if self.first_token_at is None else self.first_token_at - self.arrived

    def append(self, token: int) -> None:
        """Take the next token: extend ids and text, and finish if it ends the answer."""
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        self.output_ids.append(token)
        if token in self.tokenizer.eos_token_ids and not self.params.ignore_eos:
            self._finish("stop")
            return
        self.text += self._stream.step(token)
        cut = min((at for s in self.params.stop if (at := self.text.find(s)) >= 0), default=-1)
        if cut >= 0:
            self.text, self.finish_reason = self.text[:cut], "stop"
        elif len(self.output_ids) == self.params.max_tokens or self.num_tokens == self.limit:
            self._finish("length")

    def _finish(self, reason: str) -> None:
        self.text += self._stream.flush()
        self.finish_reason = reason

    def printable(self) -> int:
        """Characters of `text` that no later token can take back, as the beginning of a stop string might be."""
        if self.finish_reason is not None:
            return len(self.text)
        longest = max((len(s) for s in self.params.stop), default=1)
        for tail in range(min(longest - 1, len(self.text)), 0, -1):
            if any(s.startswith(self.text[-tail:]) for s in self.params.stop):
                return len(self.text) - tail
        return len(self.text)
