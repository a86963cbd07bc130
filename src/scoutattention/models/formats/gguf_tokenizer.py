"""A tokenizer from a GGUF file's metadata: the vocabulary is there, how text is split is only named."""

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ...errors import ModelFileError, UnsupportedModelError

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # of tokenizer.ggml.token_type

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}


def tokenizer_of(fields: Mapping[str, Any]) -> Tokenizer:
    """A byte-level BPE tokenizer; UnsupportedModelError for another kind, or a splitting rule that is not known."""
    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise UnsupportedModelError(f"the GGUF tokenizer {kind!r} is not supported: only 'gpt2', byte-level BPE, is")
    names, kinds, merges = (_list(fields, key) for key in ("tokens", "token_type", "merges"))
    vocabulary = {name: i for i, (name, kind) in enumerate(zip(names, kinds, strict=True)) if kind != _UNUSED}
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = _splitter(pre)
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens(
        [
            AddedToken(name, special=kind == _CONTROL, normalized=False)
            for name, kind in zip(names, kinds, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    bos = special_tokens(fields).get("bos_token")
    if fields.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe") and bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
        )
    return tokenizer


def tokenizer_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of tokenizer_config.json."""
    template = fields.get("tokenizer.chat_template")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **special_tokens(fields),
        **({} if template is None else {"chat_template": template}),
    }


def special_tokens(fields: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that have a part to play, by the names tokenizer_config.json gives the parts."""
    names = _list(fields, "tokens")
    ids = {short: fields.get(f"tokenizer.ggml.{long}_token_id") for long, short in _SPECIAL.items()}
    return {f"{short}_token": names[i] for short, i in ids.items() if i is not None}


def _splitter(pre: str | None) -> pre_tokenizers.PreTokenizer:
    """The rule that cuts text into words before merges apply, by the name GGUF has for it."""
    if pre in ("gpt-2", "default"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if pre not in ("qwen2", "llama-bpe"):
        raise UnsupportedModelError(
            f"the GGUF tokenizer rule {pre!r} is not supported: supported are smollm, qwen2, llama-bpe, gpt-2, default"
        )
    words = pre_tokenizers.Split(Regex(_WORDS % ("{1,3}" if pre == "llama-bpe" else "")), behavior="isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _list(fields: Mapping[str, Any], key: str) -> list[Any]:
    values = fields.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, list):
        raise ModelFileError(f"the GGUF file does not give tokenizer.ggml.{key}")
    return values
