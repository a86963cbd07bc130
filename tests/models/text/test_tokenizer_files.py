import json

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from scoutattention.errors import ModelFileError, UnsupportedModelError
from scoutattention.models.text import Tokenizer

from .backends import byte_backend, write

TEXT = "a<s>b</s> <|im_end|>\n<x> Z <y>"
TEMPLATE = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ image_token }}|{{ messages[0].content }}"
MESSAGES = [{"role": "user", "content": "hi"}]
EOS = {"content": "</s>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
AFTER = {"content": "<|im_end|>", "lstrip": True, "rstrip": True, "normalized": False, "single_word": False}
HOMES = {
    "nowhere": {},
    "map": {"special_tokens_map": {"bos_token": "<s>", "eos_token": EOS}},
    "the map counts before the config": {
        "tokenizer_config": {"eos_token": "<s>", "bos_token": "</s>"},
        "special_tokens_map": {"eos_token": EOS},
    },
    "added_tokens_decoder silences the map": {
        "tokenizer_config": {"eos_token": "</s>", "added_tokens_decoder": {"258": {**AFTER, "special": True}}},
        "special_tokens_map": {"eos_token": "<s>"},
        "added_tokens": {"<x>": 259},
    },
    "decoder, in the order of ids": {
        "tokenizer_config": {
            "eos_token": "<|im_end|>",
            "added_tokens_decoder": {"259": {**AFTER, "content": "<x>", "special": False}, "258": AFTER},
        }
    },
    "decoder with other flags than tokenizer.json": {
        "tokenizer_config": {"added_tokens_decoder": {"257": {**EOS, "rstrip": True, "special": True}}}
    },
    "added_tokens.json": {
        "tokenizer_config": {"eos_token": "<|im_end|>"},
        "added_tokens": {"<|im_end|>": 258, "<x>": 259},
    },
    "named token outside tokenizer.json": {"tokenizer_config": {"eos_token": "<|im_end|>", "pad_token": "<x>"}},
    "extra": {"tokenizer_config": {"eos_token": "</s>", "extra_special_tokens": ["<x>", "<y>"]}},
    "extra by name": {"tokenizer_config": {"extra_special_tokens": {"image_token": "<x>"}}},
    "own name": {"tokenizer_config": {"image_token": "<x>", "additional_special_tokens": ["<y>"]}},
    "additional": {"tokenizer_config": {"additional_special_tokens": ["<x>"]}},
    "additional in the map": {"special_tokens_map": {"additional_special_tokens": ["<x>"], "image_token": "<y>"}},
    "typed objects": {
        "tokenizer_config": {
            "eos_token": {"__type": "AddedToken", **AFTER},
            "bos_token": {"__type": "AddedToken", **EOS},
        }
    },
    "null": {"tokenizer_config": {"eos_token": None, "pad_token": None}, "special_tokens_map": {"bos_token": "<s>"}},
    "null in the map": {"tokenizer_config": {"bos_token": "<s>"}, "special_tokens_map": {"bos_token": None}},
    "bos and eos are the post-processor's": {
        "tokenizer_config": {"add_bos_token": False, "add_eos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    },
    "split": {"tokenizer_config": {"split_special_tokens": True, "eos_token": "</s>"}},
}


def save(folder, files):
    byte_backend().save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("home", HOMES)
def test_special_and_added_tokens_are_those_of_transformers(home, tmp_path):
    files = {"tokenizer_config": {}, **HOMES[home]}
    files["tokenizer_config"] = {**files["tokenizer_config"], "chat_template": TEMPLATE}
    save(tmp_path, files)
    ours, theirs = Tokenizer.from_directory(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ids = theirs(TEXT).input_ids
    assert ours.encode(TEXT) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.chat(MESSAGES) == theirs.apply_chat_template(MESSAGES, tokenize=False)
    assert ours.eos_token_ids == ({theirs.eos_token_id} - {None})


def test_the_pad_token_of_tokenizer_json_is_known_to_templates(tmp_path):
    save(tmp_path, {"tokenizer_config": {"chat_template": TEMPLATE}})
    backend = byte_backend()
    backend.enable_padding(pad_id=257, pad_token="</s>")
    backend.save(str(tmp_path / "tokenizer.json"))
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert Tokenizer.from_directory(tmp_path).chat(MESSAGES) == theirs.apply_chat_template(MESSAGES, tokenize=False)


@pytest.mark.parametrize("listed", [False, True])
def test_a_named_token_is_special_whatever_tokenizer_json_says(listed, tmp_path):
    plain = {"content": "<x>", "lstrip": True, "rstrip": False, "normalized": True, "single_word": False}
    settings = {"eos_token": "<x>", "additional_special_tokens": ["<y>"]}
    if listed:
        settings["added_tokens_decoder"] = {"258": {**plain, "special": False}}
    save(tmp_path, {"tokenizer_config": settings})
    backend = byte_backend()
    backend.add_tokens([AddedToken(**plain), AddedToken("<y>")])
    backend.save(str(tmp_path / "tokenizer.json"))
    ours, theirs = Tokenizer.from_directory(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ids = theirs(TEXT).input_ids
    assert ours.encode(TEXT) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert "<x>" not in ours.decode(ids)
    assert "<y>" in ours.decode(ids)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer_config", {"eos_token": 3}, "tokenizer_config.json gives eos_token=3"),
        ("tokenizer_config", {"eos_token": {"text": "a"}}, "eos_token"),
        ("tokenizer_config", {"added_tokens_decoder": []}, "added_tokens_decoder"),
        ("tokenizer_config", {"added_tokens_decoder": {"x": EOS}}, "the token id 'x'"),
        ("tokenizer_config", {"added_tokens_decoder": {"1": {**EOS, "lstrip": 1}}}, "lstrip"),
        ("tokenizer_config", {"extra_special_tokens": "x"}, "extra_special_tokens='x'"),
        ("tokenizer_config", {"split_special_tokens": "yes"}, "split_special_tokens='yes'"),
        ("tokenizer_config", [], "holds a JSON list"),
        ("special_tokens_map", {"bos_token": []}, "special_tokens_map.json gives bos_token"),
        ("added_tokens", {"<x>": -1}, "the token id -1"),
        ("added_tokens", {"<x>": True}, "the token id true"),
        ("config", {"eos_token_id": "2"}, "config.json gives eos_token_id the token id '2'"),
        ("config", {"eos_token_id": 2.5}, "config.json gives eos_token_id the token id 2.5"),
        ("config", {"eos_token_id": {"a": 1}}, "eos_token_id"),
        ("generation_config", {"eos_token_id": [1, None]}, "generation_config.json gives eos_token_id"),
        ("tokenizer_config", {"chat_template": 3}, "a int as chat template"),
        ("tokenizer_config", {"chat_template": [{"template": "x"}]}, "has no name"),
        ("chat_template", {"chat_template": ["x"]}, "chat_template.json"),
    ],
)
def test_what_is_of_another_type_is_named(name, content, said, tmp_path):
    save(tmp_path, {name: content})
    with pytest.raises(ModelFileError, match=said):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    "home", ["chat_template.jinja", "config", "list", "mapping", "chat_template.json", "additional"]
)
def test_templates_are_found_where_they_are_kept(home, tmp_path):
    named = {"default": "this one", "tool_use": "tools"}
    write(tmp_path)
    settings = {"list": [{"name": n, "template": t} for n, t in named.items()], "mapping": named, "config": "this one"}
    if home in settings:
        write(tmp_path, settings[home])
    elif home == "chat_template.json":
        (tmp_path / home).write_text('{"chat_template": "this one"}')
    elif home == "additional":
        write(tmp_path, "not this one")
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates/default.jinja").write_text("this one")
    else:
        write(tmp_path, "not this one")
        (tmp_path / home).write_text("this one")
    assert Tokenizer.from_directory(tmp_path).chat(MESSAGES) == "this one"


def test_templates_without_a_default_are_none(tmp_path):
    write(tmp_path, {"tool_use": "tools"})
    assert not Tokenizer.from_directory(tmp_path).has_chat_template
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/rag.jinja").write_text("x")
    write(tmp_path, "hidden, as in transformers")
    assert not Tokenizer.from_directory(tmp_path).has_chat_template


def test_a_template_that_is_not_utf8_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(ModelFileError, match=r"chat_template\.jinja is not a readable text in UTF-8"):
        Tokenizer.from_directory(tmp_path)


def test_spaces_before_punctuation_are_only_kept(tmp_path):
    """transformers takes them away after decoding, for tokenizers that are not BPE."""
    write(tmp_path, clean_up_tokenization_spaces=True)
    Tokenizer.from_directory(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["<s>", 0.0]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UnsupportedModelError, match="clean_up_tokenization_spaces=true for a Unigram tokenizer"):
        Tokenizer.from_directory(tmp_path)
