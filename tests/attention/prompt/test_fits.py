"""Fits to a prompt are captured with its second layer, and replayed for the others: they are what they were."""

import weakref

import pytest
import torch

from scoutattention.attention.predict import CalibratedPredictor
from scoutattention.attention.prompt import correction, prefill
from scoutattention.attention.prompt.correction import fit_from, start
from scoutattention.attention.prompt.trial import ScoutTrial
from scoutattention.cache.digests.basis import fit_basis
from scoutattention.config import ScoutConfig
from scoutattention.kernels.cuda.ops import CudaOps
from scoutattention.kernels.plain import PlainOps
from scoutattention.kernels.triton.ops import TritonOps
from scoutattention.runtime.layer_graphs import CudaRecorder, LayerGraphs, at_once
from scoutattention.types import Rope

from ...runtime.test_layer_graphs import TapeRecorder
from ..rig import SHAPE, Rig
from .test_trial import DIMS, E, LinearModel, sample

LAYERS, ROW = 5, 1


@pytest.mark.parametrize("count", [600, 2000])
def test_corrections_that_are_replayed_are_those_of_each_layer(count):
    torch.manual_seed(0)
    inputs = [torch.randn(count, E)]
    inputs += [inputs[0] @ (torch.eye(E) + 0.5 * torch.randn(E, 3) @ torch.randn(3, E)) for _ in range(LAYERS - 1)]
    made, recorder = [], TapeRecorder()
    for run in (at_once, LayerGraphs(recorder).run):
        calibrated = CalibratedPredictor(LinearModel(), torch.zeros(2, LAYERS, 2, E, DIMS).unbind(0))
        trial = ScoutTrial(ScoutConfig().changed(correction_dims=DIMS), LAYERS, LinearModel(), calibrated)
        cosines = [trial.cosine(ROW, layer, sample(x), run) for layer, x in enumerate(inputs)]
        made.append((torch.stack(cosines), calibrated.left.clone(), calibrated.right.clone()))
    for one, other in zip(*made, strict=True):
        assert torch.equal(one, other)
    assert (made[0][1][1:, ROW] != 0).any(-1).any(-1).all(), "corrections help"
    assert (recorder.tapes.recorded, recorder.tapes.played) == (1, LAYERS - 3)


@pytest.fixture
def recorder(monkeypatch):
    """What records fits of prompts; of main dimensions too, as if they were found by a kernel."""
    made = TapeRecorder()
    made.graphs = []

    def run_of_prompt(device, tokens):
        graphs = LayerGraphs(made)
        made.graphs.append(weakref.ref(graphs))
        return graphs.run

    monkeypatch.setattr(prefill, "run_of_prompt", run_of_prompt)
    monkeypatch.setattr(PlainOps, "queued_channels", SHAPE.head_dim)
    return made


def test_main_dimensions_that_are_replayed_are_those_of_each_layer(recorder, monkeypatch):
    replayed = bases(Rig(ScoutConfig(block_size=8), quota=4), 203)
    assert (recorder.tapes.recorded, recorder.tapes.played) == (1, SHAPE.num_layers - 2)
    monkeypatch.setattr(prefill, "run_of_prompt", lambda *_: at_once)
    for one, other in zip(replayed, bases(Rig(ScoutConfig(block_size=8), quota=4), 203), strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one[1], one[2])


def bases(rig: Rig, tokens: int) -> tuple[torch.Tensor, ...]:
    """The bases of a prompt, [L, H, dims, D] each."""
    rig.add(tokens)
    return tuple(part[:, 0] for part in rig.digests.judge.basis)


def test_graphs_go_with_their_prompt(recorder):
    """Prompts of other lengths have their own, and a prompt that is broken off leaves none."""
    rig = Rig(ScoutConfig(block_size=8), quota=4)
    for tokens in (203, 97):
        rig.add(tokens)
    assert recorder.tapes.recorded == 2
    rig.store.admit(2, 20, 3)
    attend = rig.prompt.begin(2, Rope(*torch.zeros(2, 90, 0)))
    for layer in range(2):
        q = torch.randn(90, SHAPE.num_kv_heads, SHAPE.group_size, SHAPE.head_dim)
        attend(layer, q, *(q[:, :, part].contiguous() for part in range(2)), torch.randn(90, SHAPE.hidden_size))
    assert [graphs() is None for graphs in recorder.graphs] == [True, True, False]
    del attend
    assert recorder.graphs[2]() is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fits_on_a_gpu_are_the_same_captured(dtype):
    """But for sums whose order may differ: of queries and keys of few dimensions, and of a change of low rank."""
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    torch.manual_seed(0)
    make = TritonOps if dtype == torch.float32 else CudaOps
    ops, device = make(torch.device("cuda")), "cuda"

    def basis(q, k):
        return fit_basis(q, k, ops)

    with torch.cuda.stream(torch.cuda.Stream()):
        run = LayerGraphs(CudaRecorder()).run
        for _ in range(3):
            q, k = torch.randn(500, 2, 3, 128, device=device), torch.randn(1000, 2, 128, device=device)
            k = k * torch.linspace(3, 0.1, 128, device=device)
            of_keys, of_queries = run(basis, q, k)
            torch.testing.assert_close(of_queries.mT @ of_keys, torch.eye(128, device=device).expand(2, -1, -1))
            own = fit_basis(q, k, ops)
            few = [basis[0][:, :40].mT @ basis[1][:, :40] for basis in ((of_keys, of_queries), own)]
            torch.testing.assert_close(*few, rtol=1e-2, atol=1e-2)
            z, change, weight = torch.randn(3, 512, 1024, device=device)
            change = z @ torch.randn(1024, 8, device=device) @ torch.randn(8, 1024, device=device) + 0.1 * change
            z, change, weight = (each.to(dtype) for each in (z, change, weight))
            wanted = fit_from(start(weight, 8), z, change, weight)
            left, right = run(fit_from, start(weight, 8), z, change, weight)
            torch.testing.assert_close(left @ right.T, wanted.left @ wanted.right.T, rtol=1e-2, atol=1e-2)
        torch.cuda.current_stream().synchronize()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_16_bits_are_added_in_float32_on_a_gpu(dtype):
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    rows = torch.randn(300, 2000).to(dtype)
    got = correction._products(rows.cuda())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.cpu(), rows.float() @ rows.float().T, rtol=1e-4, atol=1e-2)
