from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from scoutattention.errors import ModelFileError, UnsupportedModelError
from scoutattention.models.formats.gguf_metadata import Metadata
from scoutattention.models.formats.gguf_splits import RULES
from scoutattention.models.formats.gguf_tokenizer import tokenizer_files, tokenizer_of

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
ADDED = {"<s>": 3, "</s>": 3, "<tool>": 4, "[GAP]": 5}
FIELDS = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": [*LETTERS, "hi", "Ġx", "xyz", *ADDED],
    "tokenizer.ggml.token_type": [1] * (len(LETTERS) + 3) + list(ADDED.values()),
    "tokenizer.ggml.merges": ["h i", "Ġ x"],
    "tokenizer.ggml.bos_token_id": len(LETTERS) + 3,
    "tokenizer.ggml.eos_token_id": len(LETTERS) + 4,
}


def metadata(changes=()):
    entries = FIELDS | {f"tokenizer.ggml.{key}": value for key, value in dict(changes).items()}
    return Metadata(Path("tiny.gguf"), {key: value for key, value in entries.items() if value is not None})


def read(**changes):
    return tokenizer_of(metadata(changes))


def pieces(pre, text):
    return [piece.replace("Ġ", " ") for piece, _ in read(pre=pre).pre_tokenizer.pre_tokenize_str(text)]


TEXT = "I'm 1234   yes'LL go!! fooBAR` +=x ½\n\n\u30001a"
SPLITS = {  # what llama.cpp cuts it into
    "gpt-2": "I|'m| 1234|  | yes|'|LL| go|!!| fooBAR|`| +=|x| ½|\n\n|\u3000|1|a",
    "default": "I|'|m| |123|4|  | yes|'|LL| go|!!| fooBAR|`| |+=|x| |½|\n\n|\u3000|1|a",
    "smollm": "I|'m| |1|2|3|4|  | yes|'|LL| go|!!| fooBAR|`| +=|x| |½|\n\n\u3000|1|a",
    "qwen2": "I|'m| |1|2|3|4|  | yes|'LL| go|!!| fooBAR|`| +=|x| |½|\n\n|\u3000|1|a",
    "llama-bpe": "I|'m| |123|4|  | yes|'LL| go|!!| fooBAR|`| +=|x| |½|\n\n|\u3000|1|a",
    "tekken": "I|'m| |1|2|3|4|  | yes|'LL| go|!!| foo|BAR|`| +=|x| |½|\n\n|\u3000|1|a",
    "gpt-4o": "I'm| |123|4|  | yes'LL| go|!!| foo|BAR|`| +=|x| |½|\n\n|\u3000|1|a",
}


@pytest.mark.parametrize("pre", SPLITS)
def test_text_is_split_by_the_named_rule(pre):
    found = RULES[pre].splitter().pre_tokenize_str(TEXT)
    assert "|".join(TEXT[start:end] for _, (start, end) in found) == SPLITS[pre]


def test_a_file_that_names_no_rule_has_the_default_one():
    assert read(pre=None).to_str() == read(pre="default").to_str()


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("llama3", "llama-bpe"),
        ("llama-v3", "llama-bpe"),
        ("deepseek-r1-qwen", "qwen2"),
        ("refact", "smollm"),
        ("mpt", "gpt-2"),
        ("llama4", "gpt-4o"),
    ],
)
def test_rules_have_several_names(name, same):
    assert RULES[name] == RULES[same]


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_encoding_can_be_undone(pre):
    text = "hi xyz, Grüße 12345\r\n\n\t日本 🙂 don't <tool> x"
    tokenizer = read(pre=pre)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_merges_apply():
    assert read().encode("hi x").tokens == ["hi", "Ġx"]


def test_whole_words_of_the_vocabulary_need_no_merges_under_llama_bpe():
    assert read().encode("xyz").tokens == ["x", "y", "z"]
    assert read(pre="llama-bpe", add_bos_token=False).encode("xyz").tokens == ["xyz"]


def test_texts_are_not_normalised():
    decomposed = "e\u0301"
    for pre in ("qwen2", "gpt-2"):
        assert read(pre=pre).encode(decomposed).ids != read(pre=pre).encode("\u00e9").ids


def test_a_merge_that_is_given_twice_has_its_first_rank():
    merges = ["x y", "h i", "x y"]
    tokens = [*LETTERS, "xy", "hi", "xyh"]
    tokenizer = read(tokens=tokens, token_type=None, merges=merges, bos_token_id=0, eos_token_id=1)
    assert tokenizer.encode("xyhi").tokens == ["xy", "hi"]


def test_a_token_that_ends_answers_is_special_whatever_its_kind():
    tokens = [*LETTERS, "<|im_end|>", "<tool>"]
    kinds = [1] * len(LETTERS) + [4, 4]
    tokenizer = read(tokens=tokens, token_type=kinds, merges=[], bos_token_id=0, eos_token_id=1)
    ids = tokenizer.encode("a<tool><|im_end|>").ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<tool>"


def test_added_tokens_are_whole_and_only_control_tokens_are_special():
    tokenizer = read()
    encoded = tokenizer.encode("hi<s><tool>hi")
    assert encoded.tokens == ["hi", "<s>", "<tool>", "hi"]
    assert tokenizer.decode(encoded.ids, skip_special_tokens=True) == "hi<tool>hi"
    assert tokenizer.token_to_id("[GAP]") is None


@pytest.mark.parametrize(
    ("pre", "asked", "expected"),
    [("gpt-2", None, False), ("gpt-2", True, True), ("llama-bpe", None, True), ("llama-bpe", False, False)],
)
def test_a_text_begins_with_bos_where_the_file_or_the_rule_says_so(pre, asked, expected):
    tokenizer = read(pre=pre, **({} if asked is None else {"add_bos_token": asked}))
    assert tokenizer.encode("hi").tokens == (["<s>", "hi"] if expected else ["hi"])
    assert tokenizer.encode("hi", add_special_tokens=False).tokens == ["hi"]


def test_a_text_ends_with_eos_where_the_file_says_so():
    assert read(add_eos_token=True).encode("hi").tokens == ["hi", "</s>"]
    assert read(pre="llama-bpe", add_eos_token=True).encode("hi").tokens == ["<s>", "hi", "</s>"]


def test_special_tokens_and_the_template_are_those_of_the_file():
    files = tokenizer_files(Metadata(Path("tiny.gguf"), FIELDS | {"tokenizer.chat_template": "{{ x }}"}))
    assert {name: entry.content for name, entry in files.named.items()} == {"bos_token": "<s>", "eos_token": "</s>"}
    assert files.template == ("{{ x }}", "tiny.gguf")
    assert tokenizer_files(metadata()).template is None


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"model": "rwkv"}, UnsupportedModelError, "'rwkv'"),
        ({"model": None}, ModelFileError, "tokenizer.ggml.model"),
        ({"model": 4}, ModelFileError, "model is 4, where a text"),
        ({"pre": "viking"}, UnsupportedModelError, "'viking'.*supported are default"),
        ({"pre": ["gpt-2"]}, ModelFileError, r"pre is \['gpt-2'\]"),
        ({"merges": None}, ModelFileError, r"does not give tokenizer\.ggml\.merges"),
        ({"merges": "h i"}, ModelFileError, "a list of texts"),
        ({"merges": ["h i", "hi"]}, ModelFileError, "entry 1 of tokenizer.ggml.merges is 'hi', which has no space"),
        ({"merges": ["q h"]}, ModelFileError, "entry 0 .* 'qh' is not a token"),
        ({"merges": ["hq i"]}, ModelFileError, "'hq' is not a token"),
        ({"token_type": [1, 1]}, ModelFileError, "gives 2 kinds for the 263 tokens"),
        ({"token_type": ["a"] * 263}, ModelFileError, "a list of whole numbers"),
        ({"tokens": ["a"] * 263}, ModelFileError, "the token 'a' twice"),
        ({"bos_token_id": 263}, ModelFileError, "bos_token_id is 263, where one of the 263 tokens"),
        ({"eos_token_id": -1}, ModelFileError, "eos_token_id is -1"),
        ({"padding_token_id": 2**32 - 1}, ModelFileError, "padding_token_id is 4294967295"),
        ({"add_bos_token": "yes"}, ModelFileError, "add_bos_token is 'yes', where true or false"),
        ({"pre": "llama-bpe", "bos_token_id": None}, ModelFileError, "texts need a bos token"),
        ({"add_eos_token": True, "eos_token_id": None}, ModelFileError, "texts need a eos token"),
    ],
)
def test_what_cannot_be_read_is_named(changes, error, named):
    with pytest.raises(error, match=named):
        tokenizer_files(metadata(changes)), read(**changes)
