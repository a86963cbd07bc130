"""Which tokens may come next in an answer that conforms to a JSON schema, as the library llguidance says."""

import json
from typing import TYPE_CHECKING

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from ...errors import ConfigError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

OPTIONS: "JsonCompileOptions" = {"whitespace_pattern": r"[ \n\r\t]{0,32}"}
"""White space between two parts of the JSON is bounded: models are known to go on with it for ever."""
SILENT = 0
"""What the library writes to stderr by itself."""


class JsonAnswer:
    """The JSON of one answer, as far as it was made.

    allowed: bool [vocab], tokens that may come next, those that end the answer among them where it may end.
    """

    def __init__(self, matcher: LLMatcher, vocab: int) -> None:
        self._matcher = matcher
        self._vocab = vocab
        self.allowed = self._mask()

    def take(self, token: int) -> bool:
        """Take the next token; whether the JSON is whole, and nothing may follow.

        Raises ConfigError where the library gives up, as it does with very intricate schemas.
        """
        self._matcher.consume_token(token)
        self._check()
        if self._matcher.is_stopped():
            return True
        self.allowed = self._mask()
        return self._matcher.is_stopped() or not bool(self.allowed.any())  # a mask may be the first to find it

    def _mask(self) -> Tensor:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        return torch.from_numpy(np.unpackbits(bits, count=self._vocab, bitorder="little").view(np.bool_))

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConfigError(f"json_schema cannot be followed any further: {_first_line(self._matcher)}")


class JsonSchemas:
    """Makes a `JsonAnswer` for each answer of a model."""

    def __init__(self, tokenizer: str, vocab: int, ends: frozenset[int]) -> None:
        """tokenizer: the text of a tokenizer.json.   vocab: its highest id, and 1.   ends: tokens that end an answer.

        Raises ConfigError where the library cannot read the tokenizer.
        """
        known = sorted(end for end in ends if end < vocab)
        if not known:  # the library wants an end: it gets one that the model cannot say
            known, tokenizer = [vocab], _with_end(tokenizer, vocab)
        try:
            self._tokenizer = LLTokenizer(tokenizer, eos_token=known)
        except ValueError as error:
            raise ConfigError(
                f"json_schema cannot be followed with this model's tokenizer: {str(error).splitlines()[0]}"
            ) from error
        self._vocab = vocab
        self._last: tuple[str, LLMatcher] | None = None

    def answer(self, schema: str) -> JsonAnswer:
        """An answer that has not begun. Raises ConfigError where the schema is none, or says what is not supported."""
        last = self._last
        if last is None or last[0] != schema:
            last = self._last = schema, self._read(schema)
        return JsonAnswer(last[1].deep_copy(), self._vocab)

    def _read(self, schema: str) -> LLMatcher:
        try:
            read = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"json_schema is no JSON: {str(error)[:80]}") from None
        if not isinstance(read, dict):
            raise ConfigError("json_schema is no JSON object: give one, as {} for any JSON")
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_json_schema(read, OPTIONS), log_level=SILENT)
        if matcher.is_error():
            raise ConfigError(f"json_schema cannot be followed: {_first_line(matcher)}")
        return matcher


def _with_end(tokenizer: str, token: int) -> str:
    """A tokenizer.json with one more special token."""
    read = json.loads(tokenizer)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    read["added_tokens"].append({"id": token, "content": f"<|end {token}|>", "special": True, **flags})
    return json.dumps(read)


def _first_line(matcher: LLMatcher) -> str:
    return matcher.get_error().partition("\n")[0][:200]
