"""SentencePiece vocabularies against llama.cpp's way of merging, and against the tokenizer that transformers makes."""

import random
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import LlamaTokenizer

from scoutattention.errors import ModelFileError, UnsupportedModelError
from scoutattention.models.formats.gguf_metadata import Metadata
from scoutattention.models.formats.gguf_tokenizer import tokenizer_files, tokenizer_of

LETTERS = "abcdeé日▁"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def vocabulary(seed=0, pieces=60):
    """Names, kinds and scores as SentencePiece makes them: pieces of two tokens that were there before."""
    rng = random.Random(seed)
    made: list[str] = []
    while len(made) < pieces:
        piece = rng.choice([*LETTERS, *made]) + rng.choice([*LETTERS, *made])
        if len(piece) < 7 and piece not in made:
            made.append(piece)
    names = ["<unk>", "<s>", "</s>", *BYTES, *made, *LETTERS, "<tool>"]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (pieces + len(LETTERS)), 4]
    scores = [0.0] * 259 + [-float(i) for i in range(pieces + len(LETTERS))] + [-1000.0]
    return names, kinds, scores


def metadata(seed=0, **changes):
    names, kinds, scores = vocabulary(seed)
    lists = {"model": "llama", "tokens": names, "token_type": kinds, "scores": scores} | changes
    entries = {f"tokenizer.ggml.{key}": value for key, value in lists.items() if value is not None}
    return Metadata(Path("tiny.gguf"), entries)


def read(seed=0, **changes):
    return tokenizer_of(metadata(seed, **changes))


def merged(text, names, scores):
    """llama.cpp's way: always join the two neighbours whose joint token has the best score, the leftmost first."""
    ids = {name: i for i, name in enumerate(names)}
    parts: list[str] = list(text)
    while True:
        pairs = [(-scores[ids[a + b]], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not pairs:
            break
        _, i = min(pairs)
        parts[i : i + 2] = ["".join(parts[i : i + 2])]
    return [i for part in parts for i in ([ids[part]] if part in ids else [3 + byte for byte in part.encode()])]


def random_text(rng):
    return "".join(rng.choice("abcdeé日 ü🙂\n") for _ in range(rng.randrange(1, 40)))


@pytest.mark.parametrize("seed", range(4))
def test_texts_are_merged_as_llama_cpp_merges(seed):
    names, _, scores = vocabulary(seed)
    tokenizer, rng = read(seed), random.Random(seed)
    for text in (random_text(rng) for _ in range(100)):
        assert tokenizer.encode(text).ids == [1, *merged("▁" + text.replace(" ", "▁"), names, scores)]


@pytest.mark.parametrize("seed", range(4))
def test_texts_are_the_tokens_that_transformers_makes(seed):
    names, _, scores = vocabulary(seed)
    order = {name: i for i, name in enumerate(names)}
    pairs = [
        (name[:cut], name[cut:])
        for name in names[259:-1]
        for cut in range(1, len(name))
        if {name[:cut], name[cut:]} <= order.keys()
    ]
    pairs.sort(key=lambda pair: -scores[order["".join(pair)]])
    theirs = LlamaTokenizer(vocab=order, merges=pairs, legacy=True, add_bos_token=True)
    ours, rng = read(seed), random.Random(seed)
    for text in ("a" + random_text(rng) for _ in range(100)):  # theirs adds no space before a text that begins with one
        ids = theirs.encode(text)
        assert ours.encode(text).ids == ids
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True) == text


def test_each_piece_after_a_special_token_begins_with_a_space():
    names, _, scores = vocabulary()
    ids = {name: i for i, name in enumerate(names)}
    expected = [1, 2, *merged("▁b", names, scores), ids["<tool>"], *merged("▁▁c", names, scores)]
    assert read().encode("</s>b<tool> c").ids == expected
    plain = read(add_space_prefix=False)
    assert plain.encode("</s>b").tokens == ["<s>", "</s>", "b"]
    assert plain.decode(plain.encode(" b").ids) == " b"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["<s>", "▁"]),
        ({"add_bos_token": False}, ["▁"]),
        ({"add_eos_token": True}, ["<s>", "▁", "</s>"]),
        ({"bos_token_id": 2}, ["</s>", "▁"]),
    ],
)
def test_texts_begin_and_end_as_the_file_says(changes, expected):
    assert read(add_space_prefix=False, **changes).encode(" ").tokens == expected


def test_parts_that_the_file_does_not_give_are_llama_cpps():
    named = {name: entry.content for name, entry in tokenizer_files(metadata()).named.items()}
    assert named == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def test_what_no_token_spells_is_bytes():
    assert read(add_space_prefix=False, add_bos_token=False).encode("ü").tokens == ["<0xC3>", "<0xBC>"]
    assert read().decode([1, 3 + 0xC3, 3 + 0xBC]) == "ü"


NAMES, KINDS, SCORES = vocabulary()


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"scores": None}, ModelFileError, "does not give tokenizer.ggml.scores"),
        ({"scores": SCORES[:-1]}, ModelFileError, f"gives {len(NAMES) - 1} scores for the {len(NAMES)} tokens"),
        ({"scores": [*SCORES[:-1], float("nan")]}, ModelFileError, "finite numbers"),
        ({"scores": [0.0] * len(SCORES)}, UnsupportedModelError, "the same score"),
        (
            {"tokens": ["x" if name == "<0x0A>" else name for name in NAMES]},
            UnsupportedModelError,
            "without the token <0x0A>",
        ),
        ({"tokens": [*NAMES[:-1], "qb"], "token_type": [*KINDS[:-1], 1]}, UnsupportedModelError, "'qb'.*made of 'q'"),
        ({"add_space_prefix": 1}, ModelFileError, "add_space_prefix is 1"),
    ],
)
def test_what_cannot_be_read_is_named(changes, error, named):
    with pytest.raises(error, match=named):
        read(**changes)
