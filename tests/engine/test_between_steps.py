"""Between two captured steps the host queues and reads a few things, whatever is closed and recalled."""

import gc

import pytest
from torch import Tensor
from torch._C import DisableTorchFunction
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from scoutattention import SamplingParams
from scoutattention.engine.scheduler import Sequence
from scoutattention.runtime.graphs import Captured, Graphs

from ..runtime.test_graphs import FAR
from ..runtime.test_graphs import tapes as tapes_of_steps
from .test_generate import PROMPT, far_llm

tapes = tapes_of_steps
MOST = 3
"""One copy to the device, one graph, one read."""
READS = {"tolist", "item", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy"}


class Reading(TorchFunctionMode):
    """Notes what the host reads of the device."""

    def __init__(self, counting: "Counting") -> None:
        super().__init__()
        self._counting = counting

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in READS and self._counting.of_device(args):
            self._counting.done.append(name)
            with _disable_current_modes():
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class Counting(TorchDispatchMode):
    """Notes what is queued on the device: what works on memory of the device, or changes it, and is no view.

    host: tensors of the host. All others that are there before are the device's; so is what is made of those.
    """

    def __init__(self, host: list[Tensor]) -> None:
        super().__init__()
        self.done: list[str] = []
        mine = {tensor.untyped_storage().data_ptr() for tensor in host}
        there = [each for each in gc.get_objects() if type(each) is Tensor]
        self._device = {each.untyped_storage().data_ptr() for each in there} - mine - {0}
        self._kept: list[object] = [there]  # so that no address is given away

    def of_device(self, args: object) -> bool:
        leaves = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        return any(leaf.untyped_storage().data_ptr() in self._device for leaf in leaves)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self._kept.append(out)
        if self.of_device((args, kwargs)):
            made = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)}
            if func._schema.is_mutable or not made <= self._device:
                self.done.append(str(func))
            self._device |= made
        return out


class Replays:
    """Tapes whose playing counts as one operation."""

    def __init__(self, tapes) -> None:
        self.tapes = tapes
        self.counting: Counting | None = None

    def capture(self, step) -> Captured:
        captured = self.tapes.capture(step)

        def replay() -> None:
            if self.counting is not None:
                self.counting.done.append("replay")
            with _disable_current_modes(), DisableTorchFunction():  # a tape's waits for the CPU are a device's own
                captured.replay()

        return Captured(replay, captured.outputs)


def steps_of(llm, replays: Replays, params: SamplingParams):
    """What the host did in each step that was replayed, and whether the step closed a block; until sequences end."""
    sequences = [
        Sequence(number, prompt, params, len(prompt) + 60, llm.tokenizer)
        for number, prompt in enumerate((PROMPT, PROMPT[:61]))
    ]
    engine = llm.engine
    engine.runner._graphs = Graphs(replays)
    for sequence in sequences:
        engine.add(sequence)
    engine.step()
    host = [engine.store.exchange.host.numbers, engine.runner.attention.trusted, engine.runner.attention._has_scouts]
    while engine.busy:
        played, closed = replays.tapes.played, sum(engine.store.closed)
        with Counting(host) as counting, Reading(counting):
            replays.counting = counting
            engine.step()
            replays.counting = None
        if replays.tapes.played > played and engine.busy:
            yield counting.done, sum(engine.store.closed) > closed


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_host_does_little_between_captured_steps(tiny_models, tapes, temperature):
    llm = far_llm(str(tiny_models["qwen3"]), FAR, 5, 2, kernels="plain")
    done, closes = zip(
        *steps_of(llm, Replays(tapes), SamplingParams(max_tokens=40, ignore_eos=True, temperature=temperature)),
        strict=True,
    )
    assert len(done) > 16
    assert any(closes)
    assert llm.stats().steps.recalls > 16
    assert all("replay" in each for each in done)
    assert all(len(each) <= MOST for each in done), max(done, key=len)


def test_what_the_host_does_is_seen(tiny_models, tapes, monkeypatch):
    llm = far_llm(str(tiny_models["qwen3"]), FAR, 5, 2, kernels="plain")
    store = llm.engine.store
    end = store.end

    def reads(batch) -> None:
        end(batch)
        if bool((store.slots.content[0] >= 0).any()):
            store.slots.interest.mul_(1.0)

    monkeypatch.setattr(store, "end", reads)
    every = steps_of(llm, Replays(tapes), SamplingParams(max_tokens=12, ignore_eos=True))
    with pytest.raises(AssertionError):
        assert all(len(done) <= MOST for done, _ in every)
