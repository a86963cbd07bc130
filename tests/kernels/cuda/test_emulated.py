"""The CUDA kernels' own source against plain PyTorch, without a GPU: every thread is one of the CPU."""

import pytest
import torch
from torch import Tensor

from scoutattention.kernels import reference
from scoutattention.kernels.cuda import choice, factors, main_dims, scores
from scoutattention.kernels.cuda.base import CudaLaunch

from ..columns import assert_factors, assert_main_dims
from ..sizes import positive_matrices
from .emulator import emulate, shared_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch, folder):
    monkeypatch.setattr(CudaLaunch, "run", lambda launch: emulate(launch, folder))


def some_codes(S: int, H: int, D: int, P: int) -> tuple[Tensor, Tensor]:
    codes = torch.randint(0, 256, (S, H, -(-D // 16), P, 4), dtype=torch.uint8)
    return codes, torch.rand(S, H, 2, D).half()


@pytest.mark.parametrize("reading", [*scores.MANY.values(), scores.FEW])
@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        ((1, 2, 4, 128, 32, 27), torch.bfloat16),
        ((2, 1, 7, 64, 32, 40), torch.float32),
        ((1, 1, 9, 16, 16, 100), torch.float16),
        ((1, 1, 1, 32, 32, 9), torch.float32),
        ((1, 1, 4, 80, 32, 70), torch.bfloat16),
        ((1, 1, 4, 256, 32, 20), torch.bfloat16),
    ],
)
def test_scores(reading, sizes, dtype, monkeypatch):
    B, H, G, D, P, N = sizes
    if shared_bytes(reading, D, P) > 48 << 10:
        pytest.skip("programs of fewer channels hold more pages")
    monkeypatch.setattr(scores, "reading", lambda *_: reading)
    torch.manual_seed(0)
    codes, bounds = some_codes(N + 3, H, D, P)
    q, pages = torch.randn(B, H, G, D).to(dtype), torch.randint(0, N + 3, (B, H, N), dtype=torch.int32)
    closed = torch.tensor([N, N // 3][:B])
    got = scores.score_key_codes(q, codes, bounds, pages, closed, 0.3)
    want = reference.score_key_codes(0.3 * q.float(), codes, bounds, pages)
    for row, count in enumerate(closed.tolist()):
        assert torch.allclose(got[row, ..., :count], want[row, ..., :count].float(), atol=5e-3)


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize(
    ("N", "count", "closed"), [(100, 20, 90), (700, 64, 700), (700, 64, 30), (2100, 300, 2000), (4200, 64, 4200)]
)
def test_best_blocks(N, count, closed, largest):
    torch.manual_seed(1)
    made, always = 4 * torch.randn(2, 1, 3, N), (1, 2)
    made[1] = made[1].round()  # many of them are equal
    ended = torch.tensor([closed, closed])
    got = choice.top_blocks(made, ended, count, always, largest=largest)
    want = reference.top_blocks(made, ended, count, always, largest=largest)
    assert torch.allclose(got.all_wishes, want.all_wishes, atol=1e-6)
    there = min(count, closed)
    same = got.all_wishes.gather(-1, got.blocks[..., :there])
    assert torch.allclose(same, want.all_wishes.gather(-1, want.blocks[..., :there]), atol=1e-6)
    for row in range(2):
        assert len(set(got.blocks[row, 0].tolist())) == count
    assert torch.equal(got.wishes[..., :there], same)


def test_blocks_that_are_wished_for_alike_come_in_their_order():
    got = choice.top_blocks(torch.zeros(1, 1, 2, 1000), torch.tensor([900]), 70, (0, 0), largest=False)
    assert got.blocks[0, 0].tolist() == list(range(70))


def test_products():
    torch.manual_seed(2)
    q, basis = torch.randn(2, 2, 3, 48).bfloat16(), torch.randn(2, 2, 24, 48)
    assert torch.allclose(scores.project(q, basis), reference.project(q, basis), atol=1e-3)


@pytest.mark.parametrize(
    ("m", "dtype"),
    [(1, torch.float32), (40, torch.float32), (128, torch.float32), (64, torch.float64), (17, torch.float64)],
)
def test_factors(m, dtype):
    """Of whole matrices, and of blocks of larger ones."""
    torch.manual_seed(5)
    larger = positive_matrices(2, m + 3, 3.0).to(dtype)
    for matrices in (larger[:, :m, :m].contiguous(), larger[:, 3:, 3:]):
        assert factors.has_kernel(matrices)
        assert_factors(factors.factors(matrices), matrices)


def test_factors_that_have_no_kernel():
    for m, dtype in ((129, torch.float32), (65, torch.float64), (4, torch.float16)):
        assert not factors.has_kernel(torch.empty(1, m, m, dtype=dtype))


@pytest.mark.parametrize(("D", "warps"), [(16, 32), (16, 4), (8, 1), (36, 6), (48, 4)])
def test_main_dims(D, warps, monkeypatch):
    """A warp has one pair of rows or several; rows end within a lane's numbers, or not."""
    torch.manual_seed(3)
    monkeypatch.setattr(main_dims, "MOST_WARPS", warps)
    keys = torch.randn(2, 4 * D, D) * torch.logspace(0, -2, D) @ torch.linalg.qr(torch.randn(2, D, D)).Q
    keys[1, :, 3:] = 0  # most directions have no strength
    moments = keys.mT @ keys
    assert_main_dims(main_dims.main_dims(moments), moments)


@pytest.mark.parametrize(("D", "warps"), [(80, 2), (112, 1)])
def test_main_dims_of_rows_that_end_within_a_lane(D, warps, monkeypatch):
    """The directions are nearly channels, so that few sweeps will do."""
    torch.manual_seed(4)
    monkeypatch.setattr(main_dims, "MOST_WARPS", warps)
    noise = 1e-3 * torch.randn(1, D, D)
    moments = torch.linspace(1, 2, D)[torch.randperm(D)].diag() + noise + noise.mT
    assert_main_dims(main_dims.main_dims(moments), moments)


def test_main_dims_that_have_no_kernel():
    assert [main_dims.has_kernel(D) for D in (2, 5, 66, 128, 130)] == [False, False, False, True, False]
