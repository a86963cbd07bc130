"""Text to tokens and back, one token at a time too, and conversations to prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.decoders import DecodeStream

from ..errors import ModelFileError, PromptError
from .chat import ChatTemplate
from .config import token_ids
from .formats.safetensors import read_json

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class TextStream:
    """The text of tokens that arrive one at a time; never gives out a part of a character."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._given = 0

    def step(self, token_id: int) -> str:
        """The characters this token completes, which may be none."""
        self._ids.append(token_id)
        text = self._decoder.step(self._backend, token_id) or ""
        self._given += len(text)
        return text

    def flush(self) -> str:
        """What is left after the last token: the replacement character for a part of a character, mostly nothing."""
        rest: str = self._backend.decode(self._ids, skip_special_tokens=True)[self._given :]
        self._given += len(rest)
        return rest


class Tokenizer:
    """A model's tokenizer, its chat template, and the tokens that end its answers."""

    def __init__(
        self, backend: tokenizers.Tokenizer, template: ChatTemplate | None, eos_token_ids: frozenset[int]
    ) -> None:
        self._backend = backend
        self._template = template
        self.eos_token_ids = eos_token_ids

    @classmethod
    def from_directory(cls, directory: Path) -> "Tokenizer":
        """Read tokenizer.json and the optional files beside it; ModelFileError if one is missing or malformed."""
        backend = _backend(directory / "tokenizer.json")
        settings = _optional_json(directory / "tokenizer_config.json")
        special = {name: text for name in _SPECIAL if (text := _content(settings.get(name))) is not None}
        source = _template_source(directory, settings)
        eos = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
        ends = token_ids(eos)
        for name in ("config.json", "generation_config.json"):
            ends |= token_ids(_optional_json(directory / name).get("eos_token_id"))
        return cls(backend, None if source is None else ChatTemplate(source, special), ends)

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` works."""
        return self._template is not None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the tokens that the model wants around every text unless told not to."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=True)
        return text

    def stream(self) -> TextStream:
        """A decoder for tokens that arrive one at a time."""
        return TextStream(self._backend)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for the answer to a conversation of {"role", "content"} messages.

        It holds its special tokens as text: encode it with `add_special_tokens=False`. PromptError if the model has
        no chat template, or its template refuses the messages.
        """
        if self._template is None:
            raise PromptError("the model has no chat template: give it a plain prompt")
        return self._template.render(messages)


def _backend(path: Path) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_buffer(path.read_bytes())
    except FileNotFoundError:
        raise ModelFileError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} is not a readable tokenizer: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _template_source(directory: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template in its own file, else the one in tokenizer_config.json, where several may be named."""
    path = directory / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    source = settings.get("chat_template")
    if isinstance(source, list):
        return next((entry["template"] for entry in source if entry["name"] == "default"), None)
    return source


def _content(token: str | Mapping[str, Any] | None) -> str | None:
    """The text of a special token, written as a string or as an object."""
    return token["content"] if isinstance(token, Mapping) else token
