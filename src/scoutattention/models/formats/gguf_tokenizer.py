"""A tokenizer from a GGUF file's metadata: the vocabulary is there, how text is split is only named."""

from collections.abc import Iterable, Mapping

from tokenizers import AddedToken, Tokenizer, decoders, models, processors

from ...errors import ModelFileError, UnsupportedModelError
from ..ends import end_of_turn_ids
from .gguf_metadata import Metadata
from .gguf_sentencepiece import sentencepiece_tokenizer
from .gguf_splits import RULES
from .gguf_vocabulary import CONTROL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary
from .tokenizer_files import TokenEntry, TokenizerFiles

_PARTS = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
_ENDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
"""Parts of tokens that end an answer: of a turn, of a text, or of a file in models that fill in code."""
_SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unknown": 0}
"""What llama.cpp takes where a file with a SentencePiece vocabulary does not say."""


def tokenizer_of(metadata: Metadata) -> Tokenizer:
    """The tokenizer; UnsupportedModelError for a kind or a splitting rule that is not known.

    Raises ModelFileError where the vocabulary contradicts itself.
    """
    kind = metadata.text("tokenizer.ggml.model")
    vocabulary = Vocabulary.read(metadata)
    if kind == "llama":
        tokenizer, adds_bos = sentencepiece_tokenizer(metadata, vocabulary), True
    elif kind == "gpt2":
        tokenizer, adds_bos = _byte_level(metadata, vocabulary)
    else:
        raise UnsupportedModelError(
            f"{metadata.path}: tokenizer.ggml.model={kind!r} is not supported: "
            "supported are 'gpt2', byte-level BPE, and 'llama', SentencePiece"
        )
    ends = end_of_turn_ids(enumerate(vocabulary.names))
    tokenizer.add_tokens(
        [
            AddedToken(name, special=role != USER_DEFINED or token_id in ends, normalized=False)
            for token_id, (name, role) in enumerate(zip(vocabulary.names, vocabulary.kinds, strict=True))
            if role in (CONTROL, USER_DEFINED, UNKNOWN) or token_id in ends
        ]
    )
    _add_ends_of_text(tokenizer, metadata, vocabulary, adds_bos)
    return tokenizer


def tokenizer_files(metadata: Metadata) -> TokenizerFiles:
    """What the files beside a tokenizer.json would say of it."""
    names = metadata.texts("tokenizer.ggml.tokens")
    special = {f"{_PARTS[part]}_token": names[token_id] for part, token_id in special_ids(metadata, _PARTS).items()}
    template = metadata.text("tokenizer.chat_template") if metadata.has("tokenizer.chat_template") else None
    return TokenizerFiles(
        named={name: TokenEntry(content, {"special": True}) for name, content in special.items()},
        extra=(),
        added={},
        ends=end_of_turn_ids(enumerate(names), special_ids(metadata, _ENDS).values()),
        template=None if template is None else (template, str(metadata.path)),
        split_special_tokens=False,
        clean_up=False,
    )


def special_ids(metadata: Metadata, parts: Iterable[str]) -> Mapping[str, int]:
    """The ids of special tokens by the part they play, of those parts that the file gives, or its kind implies."""
    count = len(metadata.texts("tokenizer.ggml.tokens"))
    implied = _SENTENCEPIECE_IDS if metadata.text("tokenizer.ggml.model") == "llama" else {}
    ids = {}
    for part in parts:
        key = f"tokenizer.ggml.{part}_token_id"
        if metadata.has(key):
            ids[part] = metadata.count(key, least=0)
            if ids[part] >= count:
                raise metadata.wrong(key, ids[part], f"one of the {count} tokens")
        elif implied.get(part, count) < count:
            ids[part] = implied[part]
    return ids


def _byte_level(metadata: Metadata, vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """A tokenizer of merged bytes, and whether its rule adds the token that begins a text."""
    pre = metadata.text("tokenizer.ggml.pre", "default")
    if pre not in RULES:
        raise UnsupportedModelError(
            f"{metadata.path}: the splitting rule tokenizer.ggml.pre={pre!r} is not supported: "
            f"supported are {', '.join(RULES)}"
        )
    rule = RULES[pre]
    ids = {name: i for name, i in vocabulary.ids.items() if vocabulary.kinds[i] != UNUSED}
    model = models.BPE(ids, _merges(metadata, ids), ignore_merges=rule.whole_words)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = rule.splitter()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, rule.adds_bos


def _merges(metadata: Metadata, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs in the order of their rank, each once."""
    pairs: dict[tuple[str, str], None] = {}
    for number, merge in enumerate(metadata.texts("tokenizer.ggml.merges")):
        space = merge.find(" ", 1)
        left, right = merge[:space], merge[space + 1 :]
        if space < 0 or left not in ids or right not in ids or left + right not in ids:
            strangers = [name for name in (left, right, left + right) if name not in ids]
            raise ModelFileError(
                f"{metadata.path}: entry {number} of tokenizer.ggml.merges is {merge[:60]!r}, "
                + ("which has no space" if space < 0 else f"and {strangers[0][:60]!r} is not a token")
            )
        pairs[left, right] = None
    return list(pairs)


def _add_ends_of_text(tokenizer: Tokenizer, metadata: Metadata, vocabulary: Vocabulary, adds_bos: bool) -> None:
    """Let each text begin and end with the tokens that the file or its rule wants there."""
    ids = special_ids(metadata, ("bos", "eos"))
    wanted = {
        "bos": metadata.flag("tokenizer.ggml.add_bos_token", adds_bos),
        "eos": metadata.flag("tokenizer.ggml.add_eos_token", False),
    }
    for part, is_wanted in wanted.items():
        if is_wanted and part not in ids:
            raise ModelFileError(
                f"{metadata.path}: texts need a {part} token, by add_{part}_token or the splitting rule, "
                f"and tokenizer.ggml.{part}_token_id is not given"
            )
    if not any(wanted.values()):
        return
    begin, end = ("bos " if wanted["bos"] else ""), (" eos" if wanted["eos"] else "")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin}$A{end}",
        pair=f"{begin}$A{end} {begin}$B:1{end}",
        special_tokens=[
            {"id": part, "ids": [ids[part]], "tokens": [vocabulary.names[ids[part]]]}
            for part, is_wanted in wanted.items()
            if is_wanted
        ],
    )
