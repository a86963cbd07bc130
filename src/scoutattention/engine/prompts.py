"""Checks of the prompts and sampling params that a caller gives, before anything runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Number
from typing import Any

from ..config import SamplingParams
from ..errors import ConfigError, PromptError
from ..models.text import Tokenizer

Conversation = Sequence[Mapping[str, Any]]
"""Messages, the oldest first: {"role": "system", "user" or "assistant", "content": a text, or a list of its parts}.

A part is {"type": "text", "text": a text}.
"""
Prompt = str | Sequence[int] | Conversation
"""A text, token ids, or a conversation."""


@dataclass(frozen=True)
class PromptReader:
    """Turns prompts to token ids.

    vocab: rows of the model's embedding.   max_len: longest sequence.   model: its name, for errors.
    model_limit: longest sequence of the model itself, if that is known.
    """

    tokenizer: Tokenizer
    vocab: int
    max_len: int
    model: str
    model_limit: int | None = None

    def read(self, prompts: Prompt | Iterable[Prompt], chat: bool | None) -> list[list[int]]:
        """The token ids of one prompt or many; `chat`: see `LLM.generate`.

        Raises PromptError for what is no prompt, or cannot be run, and says which it is.
        """
        given = listed(prompts)
        names = ["the prompt"] if len(given) == 1 else [f"prompt {i} of {len(given)}" for i in range(1, len(given) + 1)]
        return [self._ids(prompt, name, chat) for prompt, name in zip(given, names, strict=True)]

    def check(self, params: SamplingParams) -> None:
        """Raises ConfigError where sampling params name a token that the model does not have."""
        highest = max(params.logit_bias or {}, default=0)
        if highest >= self.vocab:
            raise ConfigError(
                f"logit_bias has token id {highest}, and the model's vocabulary has {self.vocab} tokens, 0 to "
                f"{self.vocab - 1}: leave that token out"
            )

    def _ids(self, prompt: object, name: str, chat: bool | None) -> list[int]:
        if isinstance(prompt, str):
            ids = self._encode(prompt, name, chat)
        else:
            items = _items(prompt, name)
            talks = any(isinstance(item, Mapping) for item in items)
            ids = self._rendered(items, name) if talks else _checked_ids(items, name)
        if not ids:
            raise PromptError(f"{name} is empty: give at least 1 token")
        if min(ids) < 0 or max(ids) >= self.vocab:
            bad = next(token for token in ids if not 0 <= token < self.vocab)
            raise PromptError(
                f"{name} has token id {bad}, which the model has no embedding for: its vocabulary has {self.vocab} "
                f"tokens, 0 to {self.vocab - 1}; leave that token out"
            )
        if len(ids) >= self.max_len:
            raise PromptError(
                f"{name} has {len(ids)} tokens, and max_model_len={self.max_len} leaves room for {self.max_len - 1} "
                f"and an answer: shorten the prompt, or {self._more_room()}"
            )
        return ids

    def _more_room(self) -> str:
        """How longer sequences are allowed, for errors."""
        if self.model_limit is None:
            return "raise max_model_len up to the model's own limit"
        if self.max_len < self.model_limit:
            return f"raise max_model_len up to the model's own limit, {self.model_limit}"
        return (
            "as this is the model's own limit, take a model with a longer context, or set rope_scaling if the model "
            "card says how to extend it"
        )

    def _encode(self, text: str, name: str, chat: bool | None) -> list[int]:
        if not text:
            raise PromptError(f"{name} is empty: give at least 1 character")
        if chat and not self.tokenizer.has_chat_template:
            raise ConfigError(f"{self.model} has no chat template: pass chat=False (--no-chat)")
        if chat or (chat is None and self.tokenizer.has_chat_template):
            return self._rendered([{"role": "user", "content": text}], name)
        return self.tokenizer.encode(text, name=name)

    def _rendered(self, messages: Sequence[Any], name: str) -> list[int]:
        return self.tokenizer.encode(self.tokenizer.chat(messages, name), add_special_tokens=False, name=name)


def listed(prompts: object) -> list[object]:
    """One prompt or many as a list: numbers are the tokens of one prompt, and mappings the messages of one."""
    if isinstance(prompts, str):
        return [prompts]
    items = _items(prompts, "the prompt")
    kinds = {_kind(item) for item in items}
    if len(kinds) > 1 and kinds & {"token ids", "messages"}:
        raise PromptError(f"the prompts mix {' and '.join(sorted(kinds))}: give a list of prompts, each of one kind")
    return [items] if kinds & {"token ids", "messages"} else items


def paired(params: object, count: int) -> list[SamplingParams]:
    """Sampling params for each of so many prompts, from one for all, one for each, or None.

    Raises ConfigError where there is another number of them, or something else.
    """
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    found: list[SamplingParams] = []
    for one in params if isinstance(params, Iterable) and not isinstance(params, str | Mapping) else (params,):
        if not isinstance(one, SamplingParams):
            raise ConfigError(
                f"params has a value of type {type(one).__name__}: give SamplingParams, or a list of them"
            )
        found.append(one)
    if len(found) != count:
        raise ConfigError(f"there are {len(found)} sampling params for {count} prompts: give one, or one for each")
    return found


def of_each_answer(params: SamplingParams) -> list[SamplingParams]:
    """Those of each of the `n` answers to a prompt; a seed is followed by the next ones."""
    if params.n == 1:
        return [params]
    seeds = [None if params.seed is None else (params.seed + i) % 2**64 for i in range(params.n)]
    return [replace(params, n=1, seed=seed) for seed in seeds]


def _kind(item: object) -> str:
    if isinstance(item, Number):
        return "token ids"
    return "messages" if isinstance(item, Mapping) else "prompts"


def _items(prompt: object, name: str) -> list[object]:
    """The items of a prompt, or of a collection of prompts."""
    if hasattr(prompt, "tolist"):  # an array of numpy, or a tensor
        prompt = prompt.tolist()
    if isinstance(prompt, bytes | bytearray | memoryview):
        raise PromptError(f"{name} is bytes: decode them to a text, or give a list of token ids")
    if isinstance(prompt, Mapping):
        raise PromptError(f"{name} is a single mapping: give messages as a list, [{{'role': ..., 'content': ...}}]")
    if not isinstance(prompt, Iterable):
        raise PromptError(f"{name} is of type {type(prompt).__name__}: give a text, token ids, or messages")
    return list(prompt)


def _checked_ids(items: list[object], name: str) -> list[int]:
    """Token ids as Python's own numbers."""
    for place, item in enumerate(items):
        if isinstance(item, bool) or not isinstance(item, Integral):
            raise PromptError(f"{name} has {item!r} at place {place}, which is no token id: give whole numbers")
    return [int(item) for item in items if isinstance(item, Integral)]
