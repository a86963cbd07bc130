"""A session leaves the model, and the library, as they were."""

import pytest
import torch
from transformers import LogitsProcessorList

from scoutattention import ConfigError, scout

from .models import answer, as_cache, make, prompts, state


@pytest.fixture(scope="module")
def model():
    return make("qwen3")


def test_after_a_session(model):
    before, expected = state(model), answer(model, prompts(200))
    session = scout(model, budget=96)
    assert state(model) == before  # nothing is changed yet
    with session:
        assert state(model) != before
        assert not torch.equal(answer(model, prompts(200)), expected)
    assert state(model) == before
    assert torch.equal(answer(model, prompts(200)), expected)


def fail(*_):
    raise KeyboardInterrupt


def test_after_an_exception(model):
    before = state(model)
    with pytest.raises(KeyboardInterrupt), scout(model) as session:
        answer(model, prompts(80), logits_processor=LogitsProcessorList([fail]))
    assert state(model) == before
    assert session._memory is None


def test_a_session_goes_on_after_an_exception(model):
    expected = answer(model, prompts(80))
    handle = None
    with scout(model, budget=None) as session:
        for layer in (0, 2):
            handle = model.model.layers[layer].mlp.register_forward_hook(fail)
            with pytest.raises(KeyboardInterrupt):
                answer(model, prompts(80))
            handle.remove()
            assert session._memory.batch == 0
            assert torch.equal(answer(model, prompts(80)), expected)


@pytest.mark.parametrize("calls", [1, 2])
def test_a_cache_whose_call_failed_is_not_used_again(model, calls):
    given = prompts(80)
    with scout(model) as session, torch.no_grad():
        cache = session.new_cache(100)
        if calls == 2:
            model(**given, **as_cache(model, cache))
        handle = model.model.layers[1].mlp.register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            model(input_ids=given["input_ids"][:, :1], **as_cache(model, cache))
        handle.remove()
        with pytest.raises(ConfigError, match="the session's cache alone"):
            model(input_ids=given["input_ids"][:, :1], **as_cache(model, cache))
        assert session._memory.batch == 0


def test_a_model_has_one_session(model):
    before = state(model)
    with scout(model):
        inside = state(model)
        with pytest.raises(ConfigError, match=r"inside a `with scout\(...\)` already"), scout(model):
            pass
        assert state(model) == inside
    assert state(model) == before


def test_two_models_each_have_one(model):
    other = make("llama")
    expected = answer(model, prompts(80)), answer(other, prompts(80))
    with scout(model, budget=None):
        with scout(other, budget=None):
            made = answer(model, prompts(80)), answer(other, prompts(80))
        assert torch.equal(answer(model, prompts(80)), expected[0])
    assert all(map(torch.equal, made, expected))


def test_a_generate_of_the_models_own_is_kept():
    model, calls = make("llama"), []
    original = model.generate

    def own(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    model.generate = own
    with scout(model):
        answer(model, prompts(40))
    assert model.generate is own
    assert calls == [1]
