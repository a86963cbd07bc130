"""Text to tokens and back, one token at a time too, and conversations to prompts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import tokenizers

from ..errors import ConfigError, ModelFileError, PromptError, ScoutError, UnsupportedModelError
from .decode_rule import DecodeRule
from .file_fields import refuse_pipe
from .formats.tokenizer_files import TokenEntry, TokenizerFiles
from .templates.chat import ChatTemplate
from .templates.conversation import check_text

if TYPE_CHECKING:
    from .structured.json_schema import JsonAnswer, JsonSchemas

_BROKEN = "\ufffd"


class TextStream:
    """The text of tokens that arrive one at a time; never gives out a part of a character.

    The texts of all steps and of `flush` together are `decode` of all tokens. The cost of a step does not grow: a few
    tokens are decoded, after the tokens before them. These are there since a decoder may treat its first token
    differently, as when it takes a space away.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], name: Callable[[int], str | None], rule: DecodeRule
    ) -> None:
        """decode: the text of tokens. name: a token's own text, or None for one that decoding leaves out."""
        self._decode = decode
        self._name = name
        self._rule = rule
        self._before: list[int] = []  # whose text is given out
        self._last = 0  # how many of these came last, together
        self._before_length = 0  # of their text
        self._pending: list[int] = []
        self._given = 0  # characters of the text of `_pending`

    def step(self, token_id: int) -> str:
        """The characters this token completes, which may be none."""
        name = self._name(token_id)
        if name is None:
            return ""
        self._pending.append(token_id)
        if self._rule.byte_fallback and name.startswith("<0x"):
            return ""
        text = self._text()
        final = len(text) - (self._rule.byte_level and text.endswith(_BROKEN))
        piece = text[self._given : final]
        self._given = max(self._given, final)
        if not text and self._before_length:
            self._pending.clear()  # nothing comes of them
        elif final == len(text):
            self._settle(len(self._pending))
        elif len(self._pending) > 1:
            self._settle_but_last(text)
        return piece

    def flush(self) -> str:
        """What is left after the last token: the replacement character for a part of a character, mostly nothing."""
        rest = self._text()[self._given :]
        self._settle(len(self._pending))
        return rest

    def _text(self) -> str:
        return self._decode(self._before + self._pending)[self._before_length :]

    def _settle(self, count: int) -> None:
        """The text of the first pending tokens is final: they become those before, alone if they have text alone."""
        settled, self._pending = self._pending[:count], self._pending[count:]
        recent = self._before[len(self._before) - self._last :]
        for before in (settled, recent + settled, self._before + settled):
            if text := self._decode(before):
                break
        self._before, self._last, self._before_length = before, len(settled), len(text)
        self._given = 0

    def _settle_but_last(self, text: str) -> None:
        """Settle all but the last pending token where a character begins with it: apart they have the same text."""
        tail = self._decode(self._pending[-1:])
        if not tail or not text.endswith(tail):
            return
        head = self._decode(self._before + self._pending[:-1])[self._before_length :]
        if head + tail == text:
            given = self._given - len(head)
            self._settle(len(self._pending) - 1)
            self._given = given


class Tokenizer:
    """A model's tokenizer, its chat template, and the tokens that end its answers."""

    def __init__(
        self, backend: tokenizers.Tokenizer, template: ChatTemplate | None, eos_token_ids: frozenset[int]
    ) -> None:
        """UnsupportedModelError if text cannot be decoded token by token."""
        self._backend = backend
        self._template = template
        self.eos_token_ids = eos_token_ids
        self._special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        decoder = backend.decoder
        self._rule = DecodeRule.of(None if decoder is None else decoder.__getstate__())

    @classmethod
    def from_directory(cls, directory: Path) -> "Tokenizer":
        """Read tokenizer.json and the optional files beside it.

        ModelFileError if one is missing or malformed; UnsupportedModelError for what they ask for and is not done.
        """
        files = TokenizerFiles.read(directory)
        with _library_errors:
            backend, padding = _backend(directory / "tokenizer.json")
        if files.clean_up and type(backend.model).__name__ != "BPE":
            raise UnsupportedModelError(
                f"clean_up_tokenization_spaces=true for a {type(backend.model).__name__} tokenizer is not supported: "
                f"set it to false in {directory / 'tokenizer_config.json'}"
            )
        return cls.of(backend, files, padding)

    @classmethod
    def of(
        cls, backend: tokenizers.Tokenizer, files: TokenizerFiles, named: Mapping[str, str] | None = None
    ) -> "Tokenizer":
        """A tokenizer of the library, and what is said beside it.   named: special tokens that `backend` knows itself.

        Raises what `from_directory` does.
        """
        with _library_errors:
            _add_tokens(backend, files)
            backend.encode_special_tokens = files.split_special_tokens
            special = dict(named or {}) | {name: entry.content for name, entry in files.named.items()}
            eos = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
        template = None if files.template is None else ChatTemplate(files.template[0], special, files.template[1])
        return cls(backend, template, files.ends | ({eos} if eos is not None else set()))

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` works."""
        return self._template is not None

    def chat_template_reads(self, name: str) -> bool:
        """Whether the chat template has a variable of this name."""
        return self._template is not None and self._template.reads(name)

    def token(self, token_id: int) -> str:
        """A token's text by itself, of a special token its name; a part of a character is the replacement character."""
        name: str | None = self._backend.id_to_token(token_id)
        return name if name is not None and name in self._special else self.decode([token_id])

    def encode(self, text: str, *, add_special_tokens: bool = True, name: str = "the text") -> list[int]:
        """Token ids of a text, with the tokens that the model wants around every text unless told not to.

        name: what errors call the text.   PromptError if it cannot be written in UTF-8.
        """
        check_text(text, name)
        with _library_errors:
            # `encode` holds Python's lock until it is done, and counts offsets, which nobody reads
            (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
            ids: list[int] = encoding.ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens and ids that are beyond the vocabulary."""
        with _library_errors:
            text: str = self._backend.decode(list(ids), skip_special_tokens=True)
        return text

    def json_answer(self, schema: str) -> "JsonAnswer":
        """Follows an answer that conforms to a JSON schema. Raises ConfigError where that cannot be done."""
        return self._json_schemas.answer(schema)

    @cached_property
    def _json_schemas(self) -> "JsonSchemas":
        if find_spec("llguidance") is None:
            raise ConfigError("json_schema needs llguidance: run pip install 'scout-attention[json]'")
        made: JsonSchemas = import_module("scoutattention.models.structured.json_schema").JsonSchemas(
            self._backend.to_str(), 1 + max(self._backend.get_vocab().values()), self.eos_token_ids
        )
        return made

    def stream(self) -> TextStream:
        """A decoder for tokens that arrive one at a time."""
        return TextStream(self.decode, self._plain_name, self._rule)

    def stop_ids(self, stop: Iterable[str]) -> frozenset[int]:
        """The special tokens among texts that end an answer: they are not in its text, so it is they that end it."""
        ids = (self._backend.token_to_id(text) for text in stop if text in self._special)
        return frozenset(token_id for token_id in ids if token_id is not None)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        name: str = "the prompt",
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for the answer to a conversation of {"role", "content"} messages.

        It holds its special tokens as text: encode it with `add_special_tokens=False`.
        name: what errors call the conversation.   variables: more of the template's, as `tools`.
        PromptError if the model has no chat template, the messages are none, or the template refuses them.
        """
        if self._template is None:
            raise PromptError(f"{name} is a conversation, and the model has no chat template: give it a plain text")
        return self._template.render(messages, name, variables)

    def _plain_name(self, token_id: int) -> str | None:
        """A token's own text; None for special tokens, and for ids that are beyond the vocabulary."""
        name: str | None = self._backend.id_to_token(token_id)
        return None if name in self._special else name


def _backend(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer, without truncation and padding, and the token it would have padded with."""
    refuse_pipe(path)
    try:
        backend = tokenizers.Tokenizer.from_buffer(path.read_bytes())
    except FileNotFoundError:
        raise ModelFileError(
            f"{path.parent} has no {path.name}, and other forms of tokenizers are not read: AutoTokenizer and its "
            "save_pretrained of transformers write one"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} is not a readable tokenizer: {error}") from error
    ids = backend.get_vocab(with_added_tokens=False).values()
    if len(set(ids)) < len(ids):
        raise ModelFileError(f"{path} gives two tokens of its vocabulary the same id")
    padding = {} if backend.padding is None else {"pad_token": backend.padding["pad_token"]}
    backend.no_truncation()
    backend.no_padding()
    return backend, padding


def _add_tokens(backend: tokenizers.Tokenizer, files: TokenizerFiles) -> None:
    """Add the tokens that other files know and tokenizer.json does not, with their flags, as transformers does.

    A token with a name, such as eos_token, is special whatever tokenizer.json says.
    """
    present = backend.get_added_tokens_decoder().values()
    same = {repr(token) for token in present}
    tokens = []
    for token_id, entry in files.added.items():
        other = backend.id_to_token(token_id)
        if other not in (None, entry.content) and backend.token_to_id(entry.content) is None:
            raise ModelFileError(
                f"the id {token_id} is {other!r} in tokenizer.json and {entry.content!r} in another file"
            )
        if repr(token := _added(entry)) not in same:
            tokens.append(token)
    known = {token.content for token in (*present, *tokens)}
    names = {entry.content for entry in files.named.values()}
    for entry in (*files.named.values(), *files.extra):
        if entry.content not in known:
            tokens.append(_added(entry))
            known.add(entry.content)
    tokens += [token for token in present if token.content in names and not token.special]
    for token in tokens:
        token.special = token.special or token.content in names
    backend.add_tokens(tokens)


def _added(entry: TokenEntry) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(entry.content, **entry.flags)


class _LibraryErrors:
    """A narrow door to the tokenizer library, which raises anything at all on damaged files: a ModelFileError instead.

    Panics of its Rust code are among that, and are no `Exception`.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, ScoutError | KeyboardInterrupt | SystemExit | GeneratorExit):
            return
        said = str(error).splitlines() or [kind.__name__]
        raise ModelFileError(f"tokenizer.json is damaged: the tokenizer library says {said[0][:200]!r}") from error


_library_errors = _LibraryErrors()
