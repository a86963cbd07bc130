"""What is fitted to several layers of a prompt together is what is fitted to each."""

import pytest
import torch

from scoutattention.attention.predict import CalibratedPredictor
from scoutattention.attention.prompt import prefill
from scoutattention.attention.prompt.correction import Problem, fit_each
from scoutattention.attention.prompt.inverse import BLOCK, inverse
from scoutattention.attention.prompt.trial import ScoutTrial
from scoutattention.cache.digests.basis import Seen, fit_bases
from scoutattention.config import ScoutConfig
from scoutattention.kernels.cuda.ops import CudaOps
from scoutattention.kernels.plain import PlainOps
from scoutattention.kernels.products import product
from scoutattention.kernels.triton.ops import TritonOps

from ...kernels.sizes import positive_matrices
from ..rig import SHAPE, Rig
from .test_prefill import closed_blocks
from .test_trial import DIMS, E, LinearModel, sample

LAYERS, ROW = 5, 1
OPS = PlainOps(torch.device("cpu"))


@pytest.mark.parametrize("count", [600, 2000])
def test_layers_that_are_tried_together_have_the_corrections_of_each(count):
    """The first layer has no scouts, and one of the others is not helped."""
    torch.manual_seed(0)
    inputs = [torch.randn(count, E)]
    inputs += [inputs[0] @ (torch.eye(E) + 0.5 * torch.randn(E, 3) @ torch.randn(3, E)) for _ in range(LAYERS - 2)]
    inputs.append(inputs[-1])
    made = []
    for sizes in ([1] * LAYERS, [2, 3], [LAYERS]):
        calibrated = CalibratedPredictor(LinearModel(), torch.zeros(2, LAYERS, 2, E, DIMS).unbind(0))
        trial = ScoutTrial(ScoutConfig().changed(correction_dims=DIMS), LAYERS, LinearModel(), calibrated, OPS)
        samples, cosines = [sample(x) for x in inputs], []
        while samples:
            some, samples = samples[: sizes[0]], samples[sizes.pop(0) :]
            cosines.append(trial.cosines(ROW, LAYERS - len(some) - len(samples), some))
        made.append((torch.cat(cosines), calibrated.left[:, ROW] @ calibrated.right[:, ROW].mT))
    for one in made[1:]:
        torch.testing.assert_close(one, made[0], rtol=1e-3, atol=1e-3)
    assert (made[0][1] != 0).any(-1).any(-1).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("quota", [None, 4])
@pytest.mark.parametrize("together", [2, SHAPE.num_layers])
def test_layers_that_are_looked_into_together_are_placed_as_each(together, quota, monkeypatch):
    """Pages, digests, slots, and which scouts are trusted. The last layers are fewer; slots are filled as on a GPU."""
    alone = Rig(ScoutConfig(block_size=8), quota=quota)
    outs = [alone.add(203)]
    grouped = Rig(ScoutConfig(block_size=8), quota=quota)
    grouped.prompt._in_turns = False
    if quota is not None:
        grouped.store.transfers._from_prompt = True
    monkeypatch.setattr(prefill, "layers_together", lambda tokens, fitted: together)
    outs.append(grouped.add(203))
    for (_, one), (_, other) in zip(*outs, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(closed_blocks(alone), closed_blocks(grouped), strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(alone.prompt._trusted, grouped.prompt._trusted)
    if quota is not None:
        slots = [rig.store.slots for rig in (alone, grouped)]
        assert torch.equal(slots[0].content[:, 0], slots[1].content[:, 0])
        torch.testing.assert_close(slots[0].interest[:, 0], slots[1].interest[:, 0])
        for one, other in zip(slots[0].pool.content, slots[1].pool.content, strict=True):
            held = slots[0].near_index[0, 1 : 1 + quota].long()
            assert one[:, held].any(-1).all()
            assert torch.equal(one[:, held], other[:, held])


def test_a_prompt_that_is_broken_off_leaves_nothing_that_waits(monkeypatch):
    """Whether its layers were looked into, or waited."""
    monkeypatch.setattr(prefill, "layers_together", lambda tokens, fitted: 2)
    rig = Rig(ScoutConfig(block_size=8), quota=4)
    rig.prompt._in_turns = False
    for layers in (1, 2):
        rig.store.admit(0, 20, 3)
        attend = rig.prompt.begin(0, prefill.Rope(*torch.zeros(2, 90, 0)))
        for layer in range(layers):
            q = torch.randn(90, SHAPE.num_kv_heads, SHAPE.group_size, SHAPE.head_dim)
            attend(layer, q, *(q[:, :, part].contiguous() for part in range(2)), torch.randn(90, SHAPE.hidden_size))
        rig.store.release(0)
    assert sum(map(len, rig.prompt._cosines.values())) == 1
    tried = []
    cosines = rig.prompt._trial.cosines
    rig.prompt._trial.cosines = lambda row, first, samples: (
        tried.append((first, len(samples))) or cosines(row, first, samples)
    )
    rig.add(90)
    assert tried == [(0, 2), (2, 1)]
    assert len(rig.prompt._cosines) == 0


@pytest.mark.parametrize("m", [1, 60, BLOCK, BLOCK + 1, 3 * BLOCK - 40])
@pytest.mark.parametrize("orders", [0.0, 3.0])
def test_inverses(m, orders):
    torch.manual_seed(0)
    matrices = positive_matrices(2, m, orders)
    got, want = inverse(matrices.float(), OPS), torch.linalg.inv(matrices)
    assert (got - want).norm() < 1e-6 * 10**orders * want.norm()
    torch.testing.assert_close(got, got.mT)


@pytest.fixture(params=["triton", "cuda"])
def device_ops(request):
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return {"triton": TritonOps, "cuda": CudaOps}[request.param](torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bases_on_a_gpu_are_those_of_a_cpu(device_ops, dtype):
    """Of queries and keys of few dimensions."""
    torch.manual_seed(0)
    fall = torch.linspace(3, 0.1, 128)
    prompt = [Seen(torch.randn(500, 2, 3, 128).to(dtype), (torch.randn(1001, 2, 128) * fall).to(dtype)) for _ in "abc"]
    of_keys, of_queries = fit_bases([Seen(*(each.cuda() for each in one)) for one in prompt], device_ops)
    torch.testing.assert_close((of_queries.mT @ of_keys).cpu(), torch.eye(128).expand(3, 2, -1, -1), rtol=0, atol=1e-3)
    bases = (of_keys.cpu(), of_queries.cpu()), fit_bases(prompt, OPS)
    few = [keys[:, :, :40].mT @ queries[:, :, :40] for keys, queries in bases]
    torch.testing.assert_close(*few, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [512, 1500])
def test_corrections_on_a_gpu_are_those_of_a_cpu(device_ops, dtype, count):
    """Of changes of low rank."""
    torch.manual_seed(0)
    problems = []
    for _ in range(3):
        z, noise = torch.randn(2, count, 1024)
        change = z @ torch.randn(1024, 8) @ torch.randn(8, 1024) + 0.1 * noise
        problems.append(Problem(*(each.to(dtype) for each in (z, change, torch.randn(512, 1024)))))
    want = fit_each(problems, 8, OPS)
    left, right = fit_each([Problem(*(each.cuda() for each in one)) for one in problems], 8, device_ops)
    for mine, theirs in zip((left @ right.mT).cpu(), want.left @ want.right.mT, strict=True):
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_16_bits_are_added_in_float32_on_a_gpu(dtype):
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    rows = torch.randn(3, 300, 2000).to(dtype)
    for some in (rows, rows[0]):
        got = product(some.cuda(), some.cuda().mT)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.cpu(), some.float() @ some.float().mT, rtol=1e-4, atol=1e-2)
