"""Calls of `generate` in other threads."""

from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from threading import Event

import pytest
import torch
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

from scoutattention import ConfigError, scout

from .models import answer, as_cache, make, prompts


@pytest.fixture(scope="module")
def model():
    return make("llama")


class Held(BaseStreamer):
    """Holds a call of `generate` at a token, until it may go on."""

    def __init__(self, at=2):
        self.count, self.at = 0, at
        self.reached, self.go_on = Event(), Event()

    def put(self, value):
        self.count += 1
        if self.count == self.at:
            self.reached.set()
            assert self.go_on.wait(30)

    def end(self):
        pass


def test_one_call_at_a_time(model):
    given, held = prompts(60), Held()
    expected = answer(model, given, 6)
    with ThreadPoolExecutor(1) as pool, scout(model, budget=None) as session:
        made = pool.submit(answer, model, given, 6, streamer=held)
        assert held.reached.wait(30)
        with pytest.raises(ConfigError, match="generate runs in this session already"):
            answer(model, given)
        with pytest.raises(ConfigError, match="generate runs in this session already"):
            session.new_cache(50)
        held.go_on.set()
        assert torch.equal(made.result(), expected)
        assert torch.equal(answer(model, given, 6), expected)


def test_a_refused_call_of_another_thread_does_no_harm(model):
    given = prompts(60)
    expected = answer(model, given, 3)

    def others(*_):
        with ThreadPoolExecutor(1) as pool, torch.no_grad():
            for call, cache in ((model, as_cache(model, DynamicCache())), (model.model, {})):
                with pytest.raises(ConfigError, match="inside `with scout"):
                    pool.submit(torch.no_grad()(call), **given, **cache).result()

    with scout(model, budget=None):
        handle = model.model.layers[1].mlp.register_forward_hook(others)  # in the midst of a pass
        assert torch.equal(answer(model, given, 3), expected)
        handle.remove()


def test_an_exit_waits_for_a_call(model):
    given, held = prompts(60), Held()
    expected = answer(model, given, 6)
    with ThreadPoolExecutor(2) as pool:
        with scout(model, budget=None):
            made = pool.submit(answer, model, given, 6, streamer=held)
            assert held.reached.wait(30)
            pool.submit(lambda: Event().wait(0.05) or held.go_on.set())
        assert made.done()
        assert torch.equal(made.result(), expected)
    assert torch.equal(answer(model, given, 6), expected)


def test_of_sessions_that_enter_at_once_all_but_one_are_refused(model):
    def enter(_):
        with scout(model, workers=1):
            assert left.wait(10)

    left = Event()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(enter, number) for number in range(4)]
        for call in islice(as_completed(calls), 3):
            with pytest.raises(ConfigError, match="already: leave that one first"):
                call.result()
        left.set()
