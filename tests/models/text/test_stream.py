import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders

from scoutattention.errors import UnsupportedModelError
from scoutattention.models.text import Tokenizer

from .backends import byte_fallback_backend, llama2_decoder, long_byte_backend

KINDS = {
    "byte-level": long_byte_backend(),
    "llama-2": byte_fallback_backend(llama2_decoder()),
    "strips-two": byte_fallback_backend(llama2_decoder(strip=2)),
    "metaspace": byte_fallback_backend(decoders.Metaspace()),
    "fallback-metaspace": byte_fallback_backend(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])),
    "none": byte_fallback_backend(None),
}
TOKENIZERS = {name: Tokenizer(backend, None, frozenset()) for name, backend in KINDS.items()}
FEW = st.lists(st.integers(0, 380), min_size=1, max_size=5).flatmap(lambda pool: st.lists(st.sampled_from(pool)))


def streamed(tokenizer, ids):
    stream = tokenizer.stream()
    return [stream.step(token_id) for token_id in ids] + [stream.flush()]


@pytest.mark.parametrize("kind", KINDS)
@given(ids=st.lists(st.integers(0, 380)) | FEW)
@settings(max_examples=150)
def test_the_pieces_are_the_text_of_all_tokens(kind, ids):
    """Whatever the ids: broken characters, special tokens, and ids beyond the vocabulary."""
    assert "".join(streamed(TOKENIZERS[kind], ids)) == KINDS[kind].decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["llama-2", "byte-level"])
def test_whole_characters_are_given_out_at_once(kind):
    backend, tokenizer = KINDS[kind], TOKENIZERS[kind]
    letters = [backend.token_to_id(letter) for letter in "abab"] if kind == "byte-level" else None
    ids = letters or [backend.token_to_id(word) for word in ("a", "▁b", "▁", "b")]
    pieces = streamed(tokenizer, ids)
    assert pieces == (["a", "b", "a", "b", ""] if kind == "byte-level" else ["a", " b", " ", "b", ""])


def test_a_newline_and_half_a_character_are_what_the_whole_decode_makes_of_them():
    backend = KINDS["llama-2"]
    ids = [backend.token_to_id(word) for word in ("a", "<0x0A>", "<0xC3>", "b", "<0xC3>", "<0xA9>", "b")]
    assert streamed(TOKENIZERS["llama-2"], ids) == ["a", "", "", "\ufffd\ufffdb", "", "", "éb", ""]


def test_special_tokens_and_unknown_ids_have_no_text():
    backend, tokenizer = KINDS["byte-level"], TOKENIZERS["byte-level"]
    assert streamed(tokenizer, [backend.token_to_id("</s>"), 100_000]) == ["", "", ""]
    assert tokenizer.decode([100_000]) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_costs_the_same_at_the_end_of_a_long_answer(kind):
    backend, tokenizer = KINDS[kind], TOKENIZERS[kind]
    for word in ("▁", "\ufffd", "<0xE2>", "â", "b"):
        token_id = backend.token_to_id(word)
        if token_id is None or (kind, word) == ("strips-two", "▁"):
            continue
        stream, began = tokenizer.stream(), time.thread_time()
        for _ in range(20_000):
            stream.step(token_id)
        assert time.thread_time() - began < 5, word  # seconds; if the cost grew it would be minutes


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.WordPiece(),
        decoders.CTC(),
        decoders.BPEDecoder(),
        decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")]),
        decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex("a+"), "c")]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]),
    ],
)
def test_a_decoder_whose_text_is_never_final_is_refused(decoder):
    with pytest.raises(UnsupportedModelError, match=r"the decoder \w+ in tokenizer\.json"):
        Tokenizer(byte_fallback_backend(decoder), None, frozenset())


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (("▁", "▁", "▁", "▁b"), ["", " ", " ", " b", ""]),
        (("a", "▁", "▁", "b"), ["a", " ", " ", "b", ""]),
        (("<0xC3>", "</s>", "<0xA9>", "b"), ["", "", "", "éb", ""]),
        (("<0xC3>",), ["", "\ufffd"]),
    ],
)
def test_pieces_of_llama_2(words, pieces):
    backend = KINDS["llama-2"]
    ids = [backend.token_to_id(word) for word in words]
    assert streamed(TOKENIZERS["llama-2"], ids) == pieces
    assert "".join(pieces) == backend.decode(ids)


def test_the_first_tokens_may_lose_all_their_text():
    ids = 5 * [KINDS["strips-two"].token_to_id("▁")]
    assert streamed(TOKENIZERS["strips-two"], ids) == ["", "", " ", " ", " ", ""]
