"""Drawing tokens on the device, from logits and one random number of the host's for each token."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..cache.store import KVStore
from ..config import SamplingParams
from ..errors import ModelError
from ..models.text import Tokenizer

NOT_FINITE = -1
"""What is drawn from logits whose largest is NaN or infinite."""


class Draw(NamedTuple):
    """How a token is drawn; see `SamplingParams`.   chance: a random number in [0, 1).

    A temperature of 0 takes the likeliest.   steered: 1 where a `Bias` is added to the logits, else 0.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    chance: float = 0.0
    top_k: int = 0
    min_p: float = 0.0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    steered: float = 0.0

    @property
    def penalised(self) -> bool:
        """Whether the tokens before, or a `Bias`, change the logits."""
        return (self.repetition, self.presence, self.frequency, self.steered) != (1, 0, 0, 0)


class Drawing(NamedTuple):
    """What the drawing of a step's tokens takes.

    random: some are not just the likeliest.   penalised: some logits are changed; see `Draw.penalised`.
    """

    random: bool = False
    penalised: bool = False


GREEDY = Drawing()


class Chances:
    """The random numbers in [0, 1) that a request's tokens are drawn by; a temperature of 0 uses up none."""

    def __init__(self, params: SamplingParams) -> None:
        self._random = params.temperature > 0
        self._generator = torch.Generator()
        self._next: float | None = None
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def next(self) -> float:
        """The next number, until it is used: a step that is broken off draws again by the same."""
        if self._next is None:
            self._next = float(torch.rand((), generator=self._generator)) if self._random else 0.0
        return self._next

    def used(self) -> None:
        """Go on to the one after."""
        self._next = None


def draw_of(params: SamplingParams, chance: float, *, steered: bool = False) -> Draw:
    """How a request's next token is drawn.   steered: whether a `Bias` is added to the logits."""
    penalties = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
    return Draw(params.temperature, params.top_p, chance, params.top_k, params.min_p, *penalties, float(steered))


def drawing_of(draws: Sequence[Draw]) -> Drawing:
    """The work that sampling these tokens needs."""
    return Drawing(any(one.temperature > 0 for one in draws), any(one.penalised for one in draws))


class Bias(NamedTuple):
    """What is added to the logits of a sequence's next token.

    values: by token id.   allowed: bool [at most vocab], the only tokens that may be drawn; None is all.
    """

    values: Mapping[int, float]
    allowed: Tensor | None = None


class Steering:
    """How the tokens of one answer are drawn.   chances: the random numbers that they are drawn by.

    The bias of a token follows from `logit_bias`, `min_tokens` and `json_schema`.
    """

    def __init__(self, params: SamplingParams, ends: frozenset[int], tokenizer: Tokenizer) -> None:
        """`ends`: tokens that end the answer. Raises ConfigError where the JSON schema cannot be followed."""
        self.chances = Chances(params)
        self._params = params
        self._values = params.logit_bias or {}
        self._least = params.min_tokens
        self._ends = dict.fromkeys(ends, -math.inf) if self._least else {}
        self._json = None if params.json_schema is None else tokenizer.json_answer(params.json_schema)

    def draw(self, made: int) -> Draw:
        """How the token after `made` others is drawn; the same until it is used."""
        steered = bool(self._values) or self._json is not None or (bool(self._ends) and made < self._least)
        return draw_of(self._params, self.chances.next(), steered=steered)

    def changes(self, made: int) -> bool:
        """Whether the token after `made` others has another bias than the one before it."""
        return self._json is not None or (bool(self._ends) and made == self._least)

    def bias(self, made: int) -> Bias:
        """The bias of the logits of the token after `made` other tokens."""
        ends = self._ends if made < self._least else {}
        return Bias({**self._values, **ends}, None if self._json is None else self._json.allowed)

    def take(self, token: int) -> bool:
        """Take the token that was drawn; whether the answer's JSON is whole. Raises ConfigError."""
        return self._json is not None and self._json.take(token)


class Seen:
    """What changes the sequences' logits; takes memory when the first sequence has penalties, or a bias.

    prompts: bool [1, R, vocab], tokens of the prompt.   answers: int32 [1, R, vocab], counts in the answer.
    biases: float32 [1, R, vocab], added to the logits.
    """

    def __init__(self, store: KVStore, vocab: int) -> None:
        self.store = store
        self._vocab = vocab
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None

    def begin(self, row: int, prompt_ids: Sequence[int], output_ids: Sequence[int], steering: Steering) -> None:
        """Take note of a sequence whose prompt, and answer as far as there is one, were read into a row."""
        if self._kept is None:
            size, device = (1, self.store.num_rows, self._vocab), self.store.device
            self._kept = (
                torch.zeros(size, dtype=torch.bool, device=device),
                torch.zeros(size, dtype=torch.int32, device=device),
                torch.zeros(size, device=device),
            )
            for state in self._kept:
                self.store.follow(state, fresh=0)
        prompts, answers, _ = self._kept
        prompts[0, row, torch.tensor(prompt_ids, device=prompts.device)] = True
        if output_ids:
            ids = torch.tensor(output_ids, device=answers.device)
            answers[0, row] += torch.bincount(ids, minlength=self._vocab).int()
        self._steer(row, steering.bias(len(output_ids)))

    def go_on(self, row: int, steering: Steering, made: int) -> None:
        """Have the token after `made` others drawn with its own bias, where that differs from the last token's."""
        if steering.changes(made):
            self._steer(row, steering.bias(made))

    def _steer(self, row: int, bias: Bias) -> None:
        added = torch.zeros(self._vocab)
        if bias.allowed is not None:
            added.fill_(-torch.inf)
            added[: len(bias.allowed)].masked_fill_(bias.allowed[: self._vocab], 0)
        values = {token: value for token, value in bias.values.items() if token < self._vocab}  # an end may not be
        if values:
            added[list(values)] += torch.tensor(list(values.values()))
        self._all[2][0, row] = added.to(self.store.device)

    def feed(self, rows: Tensor, tokens: Tensor) -> None:
        """Count tokens of answers, int64 [B], that are fed to the sequences in these rows; only queues work."""
        _, answers, _ = self._all
        one = torch.ones_like(tokens, dtype=torch.int32)
        answers[0].index_put_((rows, tokens), one, accumulate=True)

    def penalise(self, logits: Tensor, draws: Tensor, rows: Tensor) -> Tensor:
        """Logits, float32 [B, vocab], changed by what was said in these rows, int64 [B]; only queues work."""
        prompts, answers, biases = (state[0, rows] for state in self._all)
        repetition, presence, frequency = draws[5:8, :, None]
        factor = repetition.expand(logits.shape).masked_fill(~prompts & (answers == 0), 1)
        repeated = torch.where(logits > 0, logits / factor, logits * factor)
        changed: Tensor = repeated - frequency * answers - presence * (answers > 0) + biases
        return changed

    @property
    def _all(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self._kept is not None
        return self._kept


def draw(logits: Tensor, draws: Tensor, drawing: Drawing, penalised: Tensor | None = None) -> Tensor:
    """One token of each sequence, int64 [B], or NOT_FINITE; only queues work.

    logits: float32 [B, vocab].   draws: float32 [9, B], see `Draw`.   penalised: what `Seen.penalise` gave, or None.
    """
    highest, token = logits.max(-1)  # NaN where any is
    if penalised is not None:
        token = penalised.argmax(-1)
    if drawing.random:
        drawn = _drawn(logits if penalised is None else penalised, draws)
        token = torch.where(draws[0] > 0, drawn, token)
    return token.masked_fill(~highest.isfinite(), NOT_FINITE)


def _drawn(logits: Tensor, draws: Tensor) -> Tensor:
    """Random tokens. They are ordered by their probability, the largest first, and chosen from by min_p and top_k.

    One of those is drawn from the fewest that reach top_p of them together.
    """
    temperature, top_p, chance, top_k, min_p = draws[:5, :, None]
    logits = logits - logits.amax(-1, keepdim=True)  # of a low temperature they would not be finite
    probs, order = (logits / temperature.masked_fill(temperature == 0, 1)).softmax(-1).sort(descending=True)
    place = torch.arange(probs.shape[-1], device=probs.device)
    kept = (probs >= min_p * probs[:, :1]) & ((place < top_k) | (top_k <= 0))
    probs = probs.masked_fill(~kept, 0)
    probs = probs / probs.sum(-1, keepdim=True)
    kept = kept & (probs.cumsum(-1) - probs < top_p)  # with the token that crosses top_p
    upto = probs.masked_fill(~kept, 0).cumsum(-1)
    place = (upto <= chance * upto[:, -1:]).sum(-1, keepdim=True)
    last = (kept.sum(-1, keepdim=True) - 1).clamp(min=0)  # of logits that are not finite there are none
    drawn: Tensor = order.gather(-1, torch.minimum(place, last))[:, 0]
    return drawn


class Scores(NamedTuple):
    """Log-probabilities of a prompt's tokens, as far as they were computed.

    tokens: the prompt.   top: likeliest tokens that are given beside each token.
    found: of each token, as `top_logprobs` gives them; None of the first one, before which there is nothing.
    """

    tokens: Sequence[int]
    top: int
    found: list[dict[int, float] | None]

    def add(self, logits: Tensor) -> None:
        """Take the logits of the next n positions, float32 [n, vocab]. The last token's are not wanted."""
        place = len(self.found)
        tokens = self.tokens[place : place + len(logits)]
        self.found.extend(top_logprobs(logits[: len(tokens)], tokens, [self.top] * len(tokens)))


def not_finite(dtype: str) -> ModelError:
    """What to say of logits that are NaN or infinite."""
    advice = {
        "float16": "set dtype (--dtype) to float32 or bfloat16",
        "bfloat16": "set dtype (--dtype) to float32",
        "float32": "the model's weights are damaged, or overflow with this prompt",
    }[dtype]
    return ModelError(f"the logits of this answer are not finite in {dtype}: {advice}")


def top_logprobs(logits: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[dict[int, float]]:
    """Log-probabilities of drawn tokens, and of so many likeliest ones, by token; the drawn one is the first.

    logits: float32 [B, vocab].   tokens, counts: B each.   Waits for the device.
    """
    all_of_them = logits.log_softmax(-1)
    drawn = all_of_them.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])
    likeliest = all_of_them.topk(min(max(counts), logits.shape[-1]))
    values, indices = torch.cat([drawn, likeliest.values], -1).tolist(), likeliest.indices.tolist()
    return [
        dict(zip([token, *ids[:count]], [each[0], *each[1:]], strict=False))
        for token, ids, each, count in zip(tokens, indices, values, counts, strict=True)
    ]
