import pytest
from tokenizers import pre_tokenizers

from scoutattention.errors import ModelFileError, UnsupportedModelError
from scoutattention.models.formats.gguf_tokenizer import tokenizer_config, tokenizer_of

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
ADDED = {"<s>": 3, "</s>": 3, "<tool>": 4, "[PAD]": 5}
FIELDS = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": [*LETTERS, "hi", "Ġx", "xyz", *ADDED],
    "tokenizer.ggml.token_type": [1] * (len(LETTERS) + 3) + list(ADDED.values()),
    "tokenizer.ggml.merges": ["h i", "Ġ x"],
    "tokenizer.ggml.bos_token_id": len(LETTERS) + 3,
    "tokenizer.ggml.eos_token_id": len(LETTERS) + 4,
}


def read(**changes):
    return tokenizer_of(FIELDS | {f"tokenizer.ggml.{key}": value for key, value in changes.items()})


def pieces(pre, text):
    return [piece.replace("Ġ", " ") for piece, _ in read(pre=pre).pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["I", "'m", " 1234", "  ", " yes", "'", "LL", " go", "!!"]),
        ("default", ["I", "'m", " 1234", "  ", " yes", "'", "LL", " go", "!!"]),
        ("smollm", ["I", "'m", " ", "1", "2", "3", "4", "  ", " yes", "'", "LL", " go", "!!"]),
        ("qwen2", ["I", "'m", " ", "1", "2", "3", "4", "  ", " yes", "'LL", " go", "!!"]),
        ("llama-bpe", ["I", "'m", " ", "123", "4", "  ", " yes", "'LL", " go", "!!"]),
    ],
)
def test_text_is_split_by_the_named_rule(pre, expected):
    assert pieces(pre, "I'm 1234   yes'LL go!!") == expected


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


def test_qwen2_composes_accents():
    decomposed = "e\u0301"
    assert read(pre="qwen2").encode(decomposed).ids == read(pre="qwen2").encode("\u00e9").ids
    assert read().encode(decomposed).ids != read().encode("\u00e9").ids


def test_added_tokens_are_whole_and_only_control_tokens_are_special():
    tokenizer = read()
    encoded = tokenizer.encode("hi<s><tool>hi")
    assert encoded.tokens == ["hi", "<s>", "<tool>", "hi"]
    assert tokenizer.decode(encoded.ids, skip_special_tokens=True) == "hi<tool>hi"
    assert tokenizer.token_to_id("[PAD]") is None


@pytest.mark.parametrize(
    ("pre", "asked", "expected"),
    [("gpt-2", None, False), ("gpt-2", True, True), ("llama-bpe", None, True), ("llama-bpe", False, False)],
)
def test_a_text_begins_with_bos_where_the_file_or_the_rule_says_so(pre, asked, expected):
    tokenizer = read(pre=pre, **({} if asked is None else {"add_bos_token": asked}))
    assert tokenizer.encode("hi").tokens == (["<s>", "hi"] if expected else ["hi"])
    assert tokenizer.encode("hi", add_special_tokens=False).tokens == ["hi"]


def test_tokenizer_config():
    config = tokenizer_config(FIELDS | {"tokenizer.chat_template": "{{ x }}"})
    assert (config["bos_token"], config["eos_token"], config["chat_template"]) == ("<s>", "</s>", "{{ x }}")
    assert "chat_template" not in tokenizer_config(FIELDS)
    assert "pad_token" not in tokenizer_config(FIELDS)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"model": "llama"}, UnsupportedModelError, "'llama'"),
        ({"model": None}, UnsupportedModelError, "None"),
        ({"pre": "tekken"}, UnsupportedModelError, "'tekken'"),
        ({"pre": None}, UnsupportedModelError, "None"),
        ({"merges": None}, ModelFileError, r"tokenizer\.ggml\.merges"),
    ],
)
def test_what_cannot_be_read_is_named(changes, error, named):
    with pytest.raises(error, match=named):
        read(**changes)
