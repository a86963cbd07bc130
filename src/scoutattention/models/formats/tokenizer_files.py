"""What the files beside tokenizer.json say: special and added tokens, ends of answers, the chat template.

Where files disagree, the one counts that counts in transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ModelFileError
from ..file_fields import read_json, refuse_pipe, shown

CONFIG = "tokenizer_config.json"
_LEGACY_MAP, _LEGACY_ADDED = "special_tokens_map.json", "added_tokens.json"
_NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class TokenEntry:
    """A token as these files write it: its text, and the flags that are given (single_word, lstrip, ...)."""

    content: str
    flags: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files of one model say.

    named: special tokens by the names that templates know, such as bos_token.
    extra: special tokens without a name.
    added: tokens by their ids, in the order of these; they are added if tokenizer.json lacks them.
    ends: ids of tokens that end an answer.
    template: the chat template's source, and where it stands; None if there is none.
    split_special_tokens: special tokens in a text are read as plain text.
    clean_up: decoded text loses spaces before punctuation, which only tokenizers that are not BPE do.
    """

    named: Mapping[str, TokenEntry]
    extra: tuple[TokenEntry, ...]
    added: Mapping[int, TokenEntry]
    ends: frozenset[int]
    template: tuple[str, str] | None
    split_special_tokens: bool
    clean_up: bool

    @classmethod
    def read(cls, directory: Path) -> "TokenizerFiles":
        """Read a model's directory; ModelFileError names the file and the key that is malformed."""
        settings = _optional(directory / CONFIG)
        where = str(directory / CONFIG)
        named, extra = _special(settings, where)
        if "added_tokens_decoder" in settings:
            added = _decoder(settings["added_tokens_decoder"], where)
        else:
            legacy = directory / _LEGACY_MAP
            if legacy.exists():
                named, extra = _legacy_special(read_json(legacy), str(legacy), named, extra)
            special = {named[name].content for name in _NAMED if name in named} | {e.content for e in extra or ()}
            added = _legacy_added(directory / _LEGACY_ADDED, special)
        return cls(
            named=named,
            extra=extra or (),
            added=dict(sorted(added.items())),
            ends=_ends(directory / "config.json") | _ends(directory / "generation_config.json"),
            template=_template(directory, settings),
            split_special_tokens=_switch(settings, "split_special_tokens", where),
            clean_up=_switch(settings, "clean_up_tokenization_spaces", where),
        )


_Extra = tuple[TokenEntry, ...] | None
"""Special tokens without a name; None where a file does not speak of any."""


def _special(settings: Mapping[str, Any], where: str) -> tuple[dict[str, TokenEntry], _Extra]:
    """The named special tokens of tokenizer_config.json, in the order of transformers, and those without a name."""
    own = {key: value for key, value in settings.items() if _is_own_name(key, value)}
    key = "extra_special_tokens" if settings.get("extra_special_tokens") else "additional_special_tokens"
    if isinstance(settings.get(key), Mapping):
        own |= settings[key]
        key = "additional_special_tokens"
    given = {name: settings[name] for name in _NAMED if settings.get(name) is not None} | own
    return {name: _entry(value, name, where) for name, value in given.items()}, _entries(settings, key, where)


def _is_own_name(key: str, value: object) -> bool:
    """Whether this is a special token of the model's own, such as image_token."""
    token = isinstance(value, str) or (isinstance(value, Mapping) and value.get("__type") == "AddedToken")
    return key.endswith("_token") and key not in _NAMED and token


def _legacy_special(
    settings: Mapping[str, Any], where: str, named: Mapping[str, TokenEntry], extra: _Extra
) -> tuple[dict[str, TokenEntry], _Extra]:
    """What special_tokens_map.json, which older versions wrote, changes of what tokenizer_config.json says."""
    read = {
        key: _entry(value, key, where, special=True)
        for key, value in settings.items()
        if key.endswith("_token") and value is not None
    }
    kept = {key: entry for key, entry in named.items() if key not in _NAMED or key not in settings}
    merged = {**read, **kept}
    more = settings.get("extra_special_tokens")
    if isinstance(more, Mapping):
        merged |= {key: _entry(value, key, where) for key, value in more.items()}
    elif more is not None:
        known = extra or ()
        extra = known + tuple(e for e in _entries(settings, "extra_special_tokens", where) or () if e not in known)
    if extra is None:
        extra = _entries(settings, "additional_special_tokens", where)
    return {key: merged[key] for key in (*_NAMED, *merged) if key in merged}, extra


def _decoder(value: object, where: str) -> dict[int, TokenEntry]:
    """The tokens of added_tokens_decoder, a mapping of ids to tokens."""
    if not isinstance(value, Mapping):
        raise ModelFileError(f"{where} gives added_tokens_decoder={shown(value)}, which is not an object")
    key = "added_tokens_decoder"
    added = {}
    for number, entry in value.items():
        if not isinstance(entry, Mapping):
            raise ModelFileError(f"{where} gives {key}[{number}]={shown(entry)}, which is not an object with a token")
        known = number.isascii() and number.isdigit() and len(number) < 10
        added[_id(int(number) if known else number, key, where)] = _entry(entry, f"{key}[{number}]", where)
    return added


def _legacy_added(path: Path, special: set[str]) -> dict[int, TokenEntry]:
    """The tokens of added_tokens.json, a mapping of texts to ids."""
    added: dict[int, TokenEntry] = {}
    for content, number in _optional(path).items():
        token_id = _id(number, content, str(path))
        if token_id in added:
            raise ModelFileError(f"{path} gives {content} and {added[token_id].content} the same id {token_id}")
        added[token_id] = TokenEntry(content, {"special": content in special, "normalized": content not in special})
    return added


def _entries(settings: Mapping[str, Any], key: str, where: str) -> _Extra:
    value = settings.get(key)
    if value is None:
        return None
    if not isinstance(value, list):
        raise ModelFileError(f"{where} gives {key}={shown(value)}, which is not a list of tokens")
    return tuple(_entry(entry, key, where) for entry in value)


def _entry(value: object, key: str, where: str, special: bool = False) -> TokenEntry:
    """A token, written as a text or as an object with one; `special`: an object's flag of this name is true."""
    if isinstance(value, str):
        return TokenEntry(value, {"special": True})
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        raise ModelFileError(
            f"{where} gives {key}={shown(value)}, which is neither a token's text nor an object with it"
        )
    flags = {name: value[name] for name in _FLAGS if name in value}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise ModelFileError(f"{where} gives {key} the {name} {shown(flag)}, which is neither true nor false")
    return TokenEntry(value["content"], flags | {"special": True} if special else flags)


def _id(value: object, key: str, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ModelFileError(f"{where} gives {key} the token id {shown(value)}, which is not a whole number from 0 on")
    return value


def _ends(path: Path) -> frozenset[int]:
    """The ids in a file's eos_token_id, which is one id, a list of them, or null."""
    value = _optional(path).get("eos_token_id")
    if value is None:
        return frozenset()
    return frozenset(_id(entry, "eos_token_id", str(path)) for entry in (value if isinstance(value, list) else [value]))


def _template(directory: Path, settings: Mapping[str, Any]) -> tuple[str, str] | None:
    """The chat template and its file. Templates in files of their own count before those in JSON.

    Where templates have names, the one named default counts; None if there is none of that name.
    """
    path = directory / "chat_template.jinja"
    files = {"default": path} if path.exists() else {}
    files |= {file.stem: file for file in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    if files:
        return (_text(files["default"]), str(files["default"])) if "default" in files else None
    source, path = settings.get("chat_template"), directory / CONFIG
    if source is None:
        path = directory / "chat_template.json"
        source = _optional(path).get("chat_template")
    return None if (text := _default(source, str(path))) is None else (text, str(path))


def _default(source: object, where: str) -> str | None:
    if isinstance(source, list):
        if not all(isinstance(e, Mapping) and isinstance(e.get("name"), str) and "template" in e for e in source):
            raise ModelFileError(f"{where} gives a list of chat templates in which one has no name or no template")
        source = {entry["name"]: entry["template"] for entry in source}
    if isinstance(source, Mapping):
        source = source.get("default")
    if source is not None and not isinstance(source, str):
        raise ModelFileError(f"{where} gives a {type(source).__name__} as chat template, where a text is expected")
    return source


def _text(path: Path) -> str:
    refuse_pipe(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} is not a readable text in UTF-8: {error}") from error


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _switch(settings: Mapping[str, Any], key: str, where: str) -> bool:
    value = settings.get(key)
    if value is not None and not isinstance(value, bool):
        raise ModelFileError(f"{where} gives {key}={shown(value)}, which is neither true nor false")
    return bool(value)
