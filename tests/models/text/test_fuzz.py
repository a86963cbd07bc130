"""Thousands of small damages to tokenizer files: each ends in a sentence, or in what transformers makes of them."""

import json
import warnings

import pytest
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from scoutattention.errors import ScoutError
from scoutattention.models.text import Tokenizer

from .backends import byte_backend, byte_fallback_backend, llama2_decoder
from .mutate_text import mutated

TEXT = "a<s>b</s> <x> é\n<|im_end|> ab"
ADDED = {"content": "<|im_end|>", "lstrip": False, "rstrip": True, "normalized": False, "single_word": False}
TEMPLATE = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ image_token }}|{{ messages[0].content }}"
NEW = {
    "tokenizer_config.json": {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "image_token": "<x>",
        "extra_special_tokens": ["<y>"],
        "additional_special_tokens": ["<z>"],
        "added_tokens_decoder": {"258": ADDED | {"special": True}, "259": ADDED | {"content": "<x>", "special": False}},
        "split_special_tokens": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    },
}
OLD = {
    "tokenizer_config.json": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<z>"],
        "chat_template": [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "x"}],
    },
    "special_tokens_map.json": {
        "bos_token": "<s>",
        "eos_token": ADDED,
        "pad_token": "<p>",
        "additional_special_tokens": ["<y>"],
    },
    "added_tokens.json": {"<|im_end|>": 258, "<x>": 259},
}
TAKEN = (
    "has to be either str or AddedToken",  # a token is an object, which does not say that it is one
    "Input must be a List[Union[str, AddedToken]]",
    "'None' is not an instance of 'bool'",  # a switch that is null is off
)
"""What transformers refuses, and is read here."""


def llama2_backend():
    backend = byte_fallback_backend(llama2_decoder())
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return backend


BACKENDS = {"byte-level": byte_backend(), "llama-2": llama2_backend()}
CASES = [(kind, age) for kind in BACKENDS for age in ("new", "old")]


def outcome(folder, files):
    """Write the files, and compare: a problem, or None."""
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    try:
        ours = Tokenizer.from_directory(folder)
        ids = ours.encode(TEXT)
        made = (ids, ours.decode(ids), _streamed(ours, ids))
    except ScoutError as error:
        return None if "\n" not in str(error) and len(str(error)) < 1000 else f"not a sentence: {error}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theirs = PreTrainedTokenizerFast.from_pretrained(folder)
        except TypeError as error:
            return None if any(text in str(error) for text in TAKEN) else f"transformers refuses: {error}"
        expected = theirs(TEXT).input_ids
    text = theirs.decode(expected, skip_special_tokens=True)
    if made != (expected, text, text):
        return f"{made} where transformers has {(expected, text)}"
    if theirs.eos_token_id is not None and theirs.eos_token_id not in ours.eos_token_ids:
        return f"ends {ours.eos_token_ids} where transformers has {theirs.eos_token_id}"
    return None


def _streamed(tokenizer, ids):
    stream = tokenizer.stream()
    return "".join([stream.step(token_id) for token_id in ids]) + stream.flush()


def problems(folder, seeds):
    found = []
    for seed in seeds:
        kind, age = CASES[seed % len(CASES)]
        files = dict(NEW if age == "new" else OLD)
        files["tokenizer.json"] = json.loads(BACKENDS[kind].to_str())
        names = sorted(files)
        name = names[seed // len(CASES) % len(names)]
        files[name] = mutated(files[name], seed)
        place = folder / age
        place.mkdir(exist_ok=True)
        problem = outcome(place, files)
        if problem is not None:
            found.append(f"seed {seed}: {name} of {kind}, {age}: {problem}")
    return found


def test_undamaged_files_are_read_as_by_transformers(tmp_path):
    for kind, backend in BACKENDS.items():
        for age, files in (("new", NEW), ("old", OLD)):
            place = tmp_path / f"{kind}-{age}"
            place.mkdir()
            assert outcome(place, {**files, "tokenizer.json": json.loads(backend.to_str())}) is None


def test_damaged_tokenizer_files_end_in_a_sentence_or_in_the_answer_of_transformers(tmp_path):
    assert not problems(tmp_path, range(150))


@pytest.mark.slow
def test_many_more_damaged_tokenizer_files(tmp_path):
    assert not problems(tmp_path, range(150, 2650))
