"""What a sequence makes of the tokens that are drawn for it."""

import pytest

from scoutattention import SamplingParams
from scoutattention.engine.scheduler import Sequence
from scoutattention.models.text import Tokenizer

from .backends import byte_backend, byte_fallback_backend, llama2_decoder


def drawn(backend, ids, **params):
    """The sequence after these tokens, or fewer where it ends before."""
    sequence = Sequence(0, [0], SamplingParams(**params), 100, Tokenizer(backend, None, frozenset({257})))
    for token in ids:
        sequence.append(token)
        if sequence.finish_reason is not None:
            break
    return sequence


@pytest.mark.parametrize("stop", [(), ("<s>",), ("zz", "<s>")])
def test_a_stop_text_that_is_a_special_token_ends_the_answer_where_it_is_drawn(stop):
    backend = byte_backend()
    a = backend.token_to_id("a")
    sequence = drawn(backend, [a, 256, a, a], stop=stop, max_tokens=4, ignore_eos=True)
    assert (sequence.text, sequence.finish_reason) == (("a", "stop") if stop else ("aaa", "length"))


def test_broken_bytes_cost_no_answer():
    backend = byte_fallback_backend(llama2_decoder())
    ids = [backend.token_to_id(word) for word in ("a", "<0x0A>", "<0xC3>", "b", "b")]
    sequence = drawn(backend, ids, max_tokens=5)
    assert (sequence.text, sequence.output_ids) == (backend.decode(ids), ids)
    assert "\ufffd" in sequence.text
