"""Changed GGUF files end in one sentence, or in a model that runs: in the same one unless a setting changed."""

import random
import resource
import time
from dataclasses import replace

import pytest
import torch

from scoutattention.errors import ModelFileError, ScoutError
from scoutattention.models.formats.gguf_file import open_gguf
from scoutattention.models.loader import load

from .. import families
from ..dense import prompt_logits
from .gguf_files import write
from .gguf_mutations import Field, mutated, taken_apart, together
from .test_gguf_sentencepiece import KINDS, NAMES, SCORES

PROMPT = [1, 5, 9, 2, 7, 40, 3]
ROOM = 3 << 30
SECONDS = 20
COUNTS = ("rope", "epsilon", "bytes", "tensors", "output", "architecture", "expert", "scale")
"""Changes with these words may give another model that is as good."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Tiny models taken apart: one with merged bytes, one with SentencePiece."""
    folder = tmp_path_factory.mktemp("fuzz")
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64}
    made = [taken_apart(write(folder / "bytes.gguf", families.make("llama", **sizes)))]
    model = families.make("llama", **sizes, vocab_size=len(NAMES))
    fields, tensors, data = taken_apart(write(folder / "pieces.gguf", model))
    fields = [field for field in fields if not field.key.startswith("tokenizer")]
    fields += [
        Field("tokenizer.ggml.model", 8, "llama"),
        Field("tokenizer.ggml.tokens", 9, NAMES, 8),
        Field("tokenizer.ggml.token_type", 9, KINDS, 5),
        Field("tokenizer.ggml.scores", 9, SCORES, 6),
        Field("tokenizer.ggml.add_bos_token", 7, True),
        Field("tokenizer.chat_template", 8, "{{ messages[0].content }}"),
    ]
    return [*made, (fields, tensors, data)]


@pytest.fixture
def little_room():
    """No more address space than a small model needs besides what is taken now."""
    with open("/proc/self/statm") as statm:
        taken = int(statm.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def answer(content, folder):
    """A model's logits and a text's tokens; the error's text where it is refused."""
    folder.mkdir()
    path = folder / "tiny.gguf"
    path.write_bytes(content)
    start = time.perf_counter()
    try:
        loaded = load(str(path))
    except ScoutError as error:
        refusal = str(error)
    else:
        refusal = ""
    assert time.perf_counter() - start < SECONDS
    if refusal:
        assert "\n" not in refusal
        return refusal
    return prompt_logits(loaded.decoder, PROMPT), loaded.tokenizer.encode("ab a1 日é")


def fuzz(files, seed, count, folder):
    rng = random.Random(seed)
    rights = [answer(together(*file), folder / f"right{i}") for i, file in enumerate(files)]
    refused = 0
    for number in range(count):
        which = rng.randrange(len(files))
        content, changed = mutated(rng, *files[which])
        found = answer(content, folder / str(number))
        if isinstance(found, str):
            refused += 1
            continue
        assert torch.isfinite(found[0]).all(), changed
        if not any(word in key for key in changed for word in COUNTS):
            assert torch.allclose(found[0], rights[which][0], atol=1e-5, rtol=0), changed
            if not any("tokenizer" in key for key in changed):
                assert found[1] == rights[which][1], changed
    assert count / 3 < refused < count


@pytest.mark.parametrize("which", [0, 1])
def test_an_entry_of_another_type_is_named(which, files, tmp_path):
    fields, tensors, data = files[which]
    for i, field in enumerate(fields):
        others = [replace(field, kind=8, value="x"), replace(field, kind=6, value=0.5)]
        others += [replace(field, kind=9, value=[[]], element=9), replace(field, kind=7, value=True)]
        for number, other in enumerate(others):
            if other.kind == field.kind:
                continue
            found = answer(together([*fields[:i], other, *fields[i + 1 :]], tensors, data), tmp_path / f"{i}-{number}")
            assert isinstance(found, str), other
            assert field.key in found, found


def test_a_file_that_ends_anywhere_is_named(files, tmp_path):
    whole = together(*files[0])
    path = tmp_path / "tiny.gguf"
    for size in range(0, len(whole) - 1, 499):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelFileError, match=r"tiny\.gguf is truncated"):
            open_gguf(path)


def test_changed_files_end_in_a_sentence_or_the_answer(files, tmp_path, little_room):
    fuzz(files, 0, 100, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_many_changed_files_end_in_a_sentence_or_the_answer(seed, files, tmp_path, little_room):
    fuzz(files, seed, 100, tmp_path)
