"""What the server sends: answers, whole or in pieces, in OpenAI's form."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ...models.text import TextStream, Tokenizer
from ..engine import Chunk
from .calls import CallReader, Said

IMPOSSIBLE = -9999.0
"""Sent for a log-probability of minus infinity, which JSON cannot hold."""
DONE = b"data: [DONE]\n\n"
"""The last event of a stream."""


class Listed(NamedTuple):
    """A token of a prompt or an answer.

    logprobs: log-probabilities by token id, the token's own first; None for the first token of a prompt.
    """

    token: int
    logprobs: dict[int, float] | None


class Prompt(NamedTuple):
    """A prompt's tokens.   echo: its text, where that comes before the answer."""

    ids: list[int]
    echo: str = ""


@dataclass
class Choice:
    """One answer, as far as it was made.

    index: its number in the response.   prompt: what it answers.   logprobs: see `listed`.
    length: characters of the tokens whose log-probabilities were written.
    """

    index: int
    prompt: Prompt
    texts: list[str] = field(default_factory=list)
    logprobs: list[Listed] | None = None
    tokens: int = 0
    finish_reason: str | None = None
    length: int = 0

    def add(self, chunk: Chunk) -> None:
        """Take a piece."""
        self.texts.append(chunk.text)
        self.tokens += len(chunk.token_ids)
        self.finish_reason = chunk.finish_reason
        if (new := self.listed(chunk)) is not None:
            self.logprobs = self.logprobs or []
            self.logprobs += new

    def listed(self, chunk: Chunk) -> list[Listed] | None:
        """The tokens of a piece, after those of the prompt where they are wanted; None where none are."""
        if chunk.logprobs is None:
            return None
        of_prompt = chunk.prompt_logprobs or ()
        own = (Listed(next(iter(one)), one) for one in chunk.logprobs)
        return [*map(Listed, self.prompt.ids, of_prompt), *own]

    @property
    def text(self) -> str:
        """All of it."""
        return self.prompt.echo + "".join(self.texts)


class Form(Protocol):
    """How the answers of an endpoint are written."""

    def piece(self, choice: Choice, chunk: Chunk) -> dict[str, Any]:
        """A piece of an answer, as an entry of `choices`; the choice has taken it already."""
        ...

    def whole(self, choice: Choice) -> dict[str, Any]:
        """A whole answer, as an entry of `choices`."""
        ...

    def head(self, *, streamed: bool) -> dict[str, Any]:
        """The fields that every body of one response shares."""
        ...


class CompletionForm:
    """The answers of /v1/completions."""

    def __init__(self, model: str, tokenizer: Tokenizer) -> None:
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
        self._head["model"] = model
        self._tokenizer = tokenizer
        self._streams: dict[int, TextStream] = {}

    def head(self, *, streamed: bool) -> dict[str, Any]:
        """The same for both."""
        return self._head

    def piece(self, choice: Choice, chunk: Chunk) -> dict[str, Any]:
        """The prompt comes with the first piece, where it is asked for."""
        echo = choice.prompt.echo if len(choice.texts) == 1 else ""
        return self._choice(choice, echo + chunk.text, choice.listed(chunk))

    def whole(self, choice: Choice) -> dict[str, Any]:
        """The text, after that of the prompt where it is asked for."""
        return self._choice(choice, choice.text, choice.logprobs)

    def _choice(self, choice: Choice, text: str, listed: Sequence[Listed] | None) -> dict[str, Any]:
        said = None if listed is None else self._logprobs(choice, listed)
        return {"index": choice.index, "text": text, "logprobs": said, "finish_reason": choice.finish_reason}

    def _logprobs(self, choice: Choice, listed: Sequence[Listed]) -> dict[str, Any]:
        """Lists with an entry for each token; an offset counts characters from the beginning of the text."""
        stream = self._streams.setdefault(choice.index, self._tokenizer.stream())
        own: list[float | None] = []
        top: list[dict[str, float] | None] = []
        tokens, offsets = [], []
        for token, logprobs in listed:
            tokens.append(self._tokenizer.token(token))
            own.append(None if logprobs is None else _finite(logprobs[token]))
            top.append(None if logprobs is None else self._top(logprobs))
            offsets.append(choice.length)
            choice.length += len(stream.step(token))
        return {"tokens": tokens, "token_logprobs": own, "top_logprobs": top, "text_offset": offsets}

    def _top(self, logprobs: dict[int, float]) -> dict[str, float]:
        """Log-probabilities by the tokens' texts; of tokens with the same text, the first one's."""
        texts: dict[str, float] = {}
        for token, value in logprobs.items():
            texts.setdefault(self._tokenizer.token(token), _finite(value))
        return texts


class ChatForm:
    """The answers of /v1/chat/completions.

    top: likeliest tokens that are listed beside each token.   calls: whether calls of tools are taken out of the text.
    only_first: whether an answer has one call at most.
    """

    def __init__(self, model: str, tokenizer: Tokenizer, top: int, *, only_first: bool = False) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._tokenizer = tokenizer
        self._top = top
        self._only_first = only_first
        self.calls = False
        self._readers: dict[int, CallReader] = {}

    def head(self, *, streamed: bool) -> dict[str, Any]:
        """Pieces are objects of their own kind."""
        return {"object": "chat.completion.chunk" if streamed else "chat.completion", **self._head}

    def piece(self, choice: Choice, chunk: Chunk) -> dict[str, Any]:
        """The role comes with the first piece."""
        said, reason = self._said(choice, chunk.text)
        delta: dict[str, Any] = {"role": "assistant"} if len(choice.texts) == 1 else {}
        delta["content"] = said.text
        if said.calls:
            delta["tool_calls"] = said.calls
        logprobs = self._logprobs(choice.listed(chunk))
        return {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def whole(self, choice: Choice) -> dict[str, Any]:
        """The text as a message."""
        said, reason = self._said(choice, choice.text)
        message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None}
        if said.calls:
            calls = [{name: call[name] for name in ("id", "type", "function")} for call in said.calls]
            message |= {"content": said.text.strip() or None, "tool_calls": calls}
        logprobs = self._logprobs(choice.logprobs)
        return {"index": choice.index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def _said(self, choice: Choice, text: str) -> tuple[Said, str | None]:
        """What a piece of an answer says, and why the answer has ended, if it has."""
        reason = choice.finish_reason
        if not self.calls:
            return Said(text, []), reason
        reader = self._readers.setdefault(choice.index, CallReader(only_first=self._only_first))
        said = reader.take(text, last=reason is not None)
        return said, "tool_calls" if reason == "stop" and reader.count else reason

    def _logprobs(self, listed: Sequence[Listed] | None) -> dict[str, Any] | None:
        if listed is None:
            return None
        content = []
        for one in listed:
            entries = [self._entry(token, value) for token, value in (one.logprobs or {}).items()]
            ordered = sorted(entries, key=lambda entry: -entry["logprob"])
            content.append({**entries[0], "top_logprobs": ordered[: self._top]})
        return {"content": content, "refusal": None}

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        text = self._tokenizer.token(token)
        return {"token": text, "logprob": _finite(value), "bytes": list(text.encode())}


def usage(prompt: int, cached: int, new: int) -> dict[str, Any]:
    """How many tokens there were.   cached: of the prompts, found in the prefix cache."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def event(body: dict[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _finite(value: float) -> float:
    return max(value, IMPOSSIBLE)
