"""Functions that are run for every layer of a prompt: what is replayed makes of its inputs what the function would."""

import pytest
import torch

from scoutattention.runtime.graphs import Captured, Recorder
from scoutattention.runtime.layer_graphs import GRAPHED, CudaRecorder, LayerGraphs, at_once, run_of_prompt

from ..engine.tape import Tapes


class TapeRecorder(Recorder):
    """Records on tapes, which play again on the same tensors."""

    def __init__(self) -> None:
        self.tapes = Tapes()

    def capture(self, work) -> Captured:
        return self.tapes.capture(work)


def product(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x @ y, x.square().sum(0)


def total(x: torch.Tensor) -> tuple[torch.Tensor]:
    return (x.sum(1),)


def waiting(x: torch.Tensor) -> tuple[torch.Tensor]:
    return (x * float(x.sum()),)


def layers(count: int = 5, size: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    return [(torch.randn(size, 4), torch.randn(2, 4).mT) for _ in range(count)]


def test_every_layer_has_results_of_its_own_inputs():
    recorder = TapeRecorder()
    graphs = LayerGraphs(recorder)
    given = layers()
    for inputs, same in zip(given, layers(), strict=True):
        for got, want in zip(graphs.run(product, *inputs), product(*same), strict=True):
            assert torch.equal(got, want)
    for inputs, same in zip(given, layers(), strict=True):
        assert all(map(torch.equal, inputs, same)), "inputs stay as they are"
    assert (recorder.tapes.recorded, recorder.tapes.played) == (1, 3), "at once, captured, and replayed"


def test_inputs_may_change_once_they_were_given():
    graphs = LayerGraphs(TapeRecorder())
    for x, y in layers():
        want = product(x, y)
        got = graphs.run(product, x, y)
        x.zero_()
        assert torch.equal(got[0], want[0])


def test_a_new_shape_or_dtype_begins_anew():
    recorder = TapeRecorder()
    graphs = LayerGraphs(recorder)
    for each in (layers(3), layers(3, size=7), [(x.double(), y.double()) for x, y in layers(3)]):
        for x, y in each:
            assert torch.equal(graphs.run(product, x, y)[0], product(x, y)[0])
    assert (recorder.tapes.recorded, recorder.tapes.played) == (3, 3)


def test_what_waits_is_not_captured_and_raises():
    graphs = LayerGraphs(TapeRecorder())
    graphs.run(waiting, torch.ones(2))
    with pytest.raises(AssertionError, match="would wait for the device"):
        graphs.run(waiting, torch.ones(2))


def test_a_cpu_runs_at_once():
    assert run_of_prompt(torch.device("cpu"), 1000) is at_once


def test_a_gpu_captures_what_is_done_for_short_prompts():
    gpu = torch.device("cuda")
    assert run_of_prompt(gpu, GRAPHED) is not at_once
    assert run_of_prompt(gpu, GRAPHED + 1) is at_once
    (x, y), *_ = layers()
    assert torch.equal(at_once(product, x, y)[0], x @ y)


@pytest.fixture
def side():
    """A stream beside the default one, on which graphs can be captured."""
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    with torch.cuda.stream(torch.cuda.Stream()):
        yield


@pytest.mark.gpu
def test_graphs_on_a_gpu_give_the_results_of_functions(side):
    graphs = LayerGraphs(CudaRecorder())
    for inputs in layers():
        x, y = (each.cuda() for each in inputs)
        for got, want in zip(graphs.run(product, x, y), product(x, y), strict=True):
            torch.testing.assert_close(got, want)
        torch.testing.assert_close(graphs.run(total, x)[0], total(x)[0])
    assert all(kept.captured is not None for kept in graphs._kept.values())


@pytest.mark.gpu
def test_the_memory_of_graphs_goes_with_them(side):
    def large(x):
        return ((x.repeat(1 << 20) * 2)[:4].clone(),)

    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    graphs, x = LayerGraphs(CudaRecorder()), torch.ones(64, device="cuda")
    for _ in range(3):
        graphs.run(large, x)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() > before + (256 << 20)
    del graphs
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + (4 << 20)
