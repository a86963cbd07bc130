"""What `generate` offers, inside a session."""

import subprocess
import sys

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

from scoutattention import CapacityError, ConfigError, scout

from .models import answer, as_cache, make, prompts


@pytest.fixture(scope="module")
def model():
    return make("llama")


class Kept(BaseStreamer):
    def __init__(self):
        self.pieces, self.ended = [], False

    def put(self, value):
        self.pieces.append(value.flatten().tolist())

    def end(self):
        self.ended = True


def test_streaming(model):
    given, kept = prompts(60), Kept()
    with scout(model):
        made = answer(model, given, 5, streamer=kept)
    assert kept.ended
    assert kept.pieces == [given["input_ids"][0].tolist(), *made.T.tolist()]


def test_sampling(model):
    given, options = prompts(60), {"do_sample": True, "temperature": 2.0, "num_return_sequences": 3}
    torch.manual_seed(3)
    expected = answer(model, given, **options)
    with scout(model, budget=None):
        torch.manual_seed(3)
        assert torch.equal(answer(model, given, **options), expected)


def test_answers_that_end_early_and_embeddings_as_input(model):
    given = prompts(60, 40)
    embedded = {"inputs_embeds": model.get_input_embeddings()(given.pop("input_ids")).detach(), **given}
    plain = model.generate(**embedded, max_new_tokens=12, do_sample=False, eos_token_id=None)
    end = plain[0, 4].item()
    expected = model.generate(**embedded, max_new_tokens=12, do_sample=False, eos_token_id=end)
    with scout(model, budget=None):
        made = model.generate(**embedded, max_new_tokens=12, do_sample=False, eos_token_id=end)
    assert torch.equal(made, expected)


@pytest.mark.parametrize(
    "length", [{}, {"max_length": 75}, {"max_new_tokens": 30, "max_length": 40}, {"max_new_tokens": 1}]
)
@pytest.mark.filterwarnings("ignore")
def test_lengths_are_those_of_the_library(model, length):
    given = prompts(60)
    expected = model.generate(**given, do_sample=False, eos_token_id=None, **length)
    with scout(model, budget=None):
        assert torch.equal(model.generate(**given, do_sample=False, eos_token_id=None, **length), expected)


def test_several_calls_share_memory_and_leave_none_taken(model):
    with scout(model, budget=None) as session:
        for lengths in ((50,), (90, 60), (40, 30), (300,)):
            given = prompts(*lengths)
            assert torch.equal(answer(model, given), answer_outside(model, given))
            memory = session._memory
            assert memory.batch == 0
            assert memory.store.pages.pool.available == memory.store.pages.pool.capacity
        answer(model, prompts(100))
        assert session._memory is memory  # it was large enough
        stats = session.stats()
    assert session._memory is None
    assert stats.prompt_tokens == 50 + 150 + 70 + 300 + 100
    assert (stats.requests, stats.new_tokens, stats.decode_tokens) == (7, 7 * 20, 7 * 19)
    assert stats.prefill_s > 0 < stats.decode_s
    assert stats.ttft_s > 0


def answer_outside(model, given):
    fresh = make("llama")
    fresh.load_state_dict(model.state_dict())
    return answer(fresh, given)


def test_a_loop_of_ones_own(model):
    given = prompts(60, 40)
    expected = answer(model, given, 6)
    positions = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with scout(model, budget=None) as session, torch.no_grad():
        cache, made = session.new_cache(max_length=65), []
        out = model(**given, position_ids=positions, **as_cache(model, cache))
        for step in range(6):
            made.append(out.logits[:, -1].argmax(-1))
            if step < 5:
                place = positions[:, -1:] + 1 + step
                out = model(input_ids=made[-1][:, None], position_ids=place, **as_cache(model, cache))
        assert torch.equal(torch.stack(made, 1), expected)
        with pytest.raises(ConfigError, match="room for 65 tokens of a sequence, and is full: raise max_length"):
            model(input_ids=made[-1][:, None], **as_cache(model, cache))
        with pytest.raises(ConfigError, match="2 x 3 tokens come after 2 prompts"):
            model(input_ids=given["input_ids"][:, :3], **as_cache(model, cache))


def test_a_loop_without_the_sessions_cache_is_refused(model):
    given = prompts(40)
    with scout(model) as session, torch.no_grad():
        old = session.new_cache(50)
        session.new_cache(50)
        for cache in ({}, {"use_cache": False}, as_cache(model, old)):
            name = next(iter(as_cache(model, None)))
            with pytest.raises(
                ConfigError, match=rf"session's cache alone: call model\.generate, or pass {name}=session"
            ):
                model(**given, **cache)
        with pytest.raises(ConfigError, match="parts of the model do not run by themselves"):
            model.model(**given)


def test_gradients_are_refused(model):
    with scout(model) as session, pytest.raises(ConfigError, match="scout computes no gradients"):
        model(**prompts(40), **as_cache(model, session.new_cache(50)))


@pytest.mark.parametrize("name", ["crop", "reset", "reorder_cache", "batch_repeat_interleave", "batch_select_indices"])
def test_the_cache_only_grows(model, name):
    with scout(model) as session:
        call = getattr(session.new_cache(50), name)
        with pytest.raises(ConfigError, match="the cache of scout cannot be"):
            call(*([] if name == "reset" else [torch.zeros(1, dtype=torch.int64)]))


def test_too_little_memory_says_what_to_change(model):
    with scout(model, host_memory="64KiB"), pytest.raises(CapacityError, match="raise host_memory, or lower max_new"):
        answer(model, prompts(2000))
    with (
        scout(model, budget=128, device_memory="100KiB", host_memory="4MiB", lookahead=0) as session,
        pytest.raises(CapacityError, match="device_memory has slots for 4 sequences, and the batch has 5"),
    ):
        answer(model, prompts(*[200] * 5))
    assert session.stats().new_tokens == 0


def test_transformers_is_imported_when_it_is_needed():
    code = "import sys; from scoutattention import scout; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
