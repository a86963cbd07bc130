"""The tokens of a GGUF file: names and kinds, by id."""

from typing import NamedTuple

from ...errors import ModelFileError
from .gguf_metadata import Metadata

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens, as tokenizer.ggml.token_type numbers them."""


class Vocabulary(NamedTuple):
    """names, kinds: one of each token, by id.   ids: of each name."""

    names: list[str]
    kinds: list[int]
    ids: dict[str, int]

    @classmethod
    def read(cls, metadata: Metadata) -> "Vocabulary":
        """Read and check the lists; ModelFileError where a token has no kind or two have one name."""
        names = [name or f"[EMPTY_{i}]" for i, name in enumerate(metadata.texts("tokenizer.ggml.tokens"))]
        kinds = [NORMAL] * len(names)
        if metadata.has("tokenizer.ggml.token_type"):
            kinds = metadata.whole_numbers("tokenizer.ggml.token_type")
        if len(kinds) != len(names):
            raise ModelFileError(
                f"{metadata.path}: tokenizer.ggml.token_type gives {len(kinds)} kinds "
                f"for the {len(names)} tokens of tokenizer.ggml.tokens"
            )
        ids = {name: i for i, name in reversed(list(enumerate(names)))}
        if len(ids) < len(names):
            twice = next(name for i, name in enumerate(names) if ids[name] != i)
            raise ModelFileError(f"{metadata.path}: tokenizer.ggml.tokens has the token {twice[:60]!r} twice")
        return cls(names, kinds, ids)
