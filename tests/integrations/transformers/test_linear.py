"""Native products of few rows, in a model's own linear layers."""

from contextlib import ExitStack

import pytest
import torch
from torch import nn

from scoutattention import scout
from scoutattention.integrations.transformers.linear import multiply_natively
from scoutattention.kernels.native import RowKernels
from scoutattention.models.decoder import FEW_ROWS
from scoutattention.runtime.workers import Workers

from .models import answer, make, prompts


class Counting(RowKernels):
    def __init__(self, workers):
        super().__init__(workers)
        self.rows = []

    def linear(self, x, weight):
        self.rows.append(len(x))
        return super().linear(x, weight)


@pytest.fixture
def kernels():
    with Workers(1) as workers:
        yield Counting(workers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_few_rows_are_native_and_many_are_not(kernels, dtype, bias):
    layer = nn.Linear(48, 40, bias=bias, dtype=dtype)
    few, many = torch.randn(2, 3, 48, dtype=dtype), torch.randn(FEW_ROWS + 1, 48, dtype=dtype)
    with torch.no_grad(), ExitStack() as undo:
        expected = layer(few), layer(many)
        multiply_natively(layer, kernels, undo)
        made = layer(few), layer(many)
    assert kernels.rows == [6]
    assert "forward" not in vars(layer)
    assert torch.equal(made[1], expected[1])
    torch.testing.assert_close(made[0], expected[0], rtol=2 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_gradients_and_other_dtypes_are_left_to_pytorch(kernels):
    layer, row = nn.Linear(48, 40), torch.randn(1, 48)
    with ExitStack() as undo:
        multiply_natively(layer, kernels, undo)
        layer(row).sum().backward()
        assert layer.weight.grad is not None
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            layer(row.bfloat16())
    assert not kernels.rows


def test_modules_of_other_kinds_are_left_alone(kernels):
    class Other(nn.Linear):
        pass

    own, other, double = nn.Linear(8, 8), Other(8, 8), nn.Linear(8, 8, dtype=torch.float64)
    own.forward = kept = lambda x: -x
    with ExitStack() as undo:
        multiply_natively(nn.ModuleList([own, other, double]), kernels, undo)
        assert "forward" not in vars(other) | vars(double)
        assert own.forward is kept
    assert own.forward is kept


def test_all_linear_layers_of_a_model_use_them(monkeypatch):
    rows = []
    original = RowKernels.linear
    monkeypatch.setattr(RowKernels, "linear", lambda self, x, weight: rows.append(len(x)) or original(self, x, weight))
    model, given = make("qwen3"), prompts(60, 50)
    linear = sum(type(module) is nn.Linear for module in model.modules())
    expected = answer(model, given, 3)
    with scout(model, budget=None):
        assert torch.equal(answer(model, given, 3), expected)
    assert rows == [2] * (2 * linear + 1)  # two steps, and the head of the prompt
    rows.clear()
    with scout(model, budget=None, kernels="plain"):
        assert torch.equal(answer(model, given, 3), expected)
    assert not rows
