"""What the GPU benchmark says of its measurements, wrong and failed ones too; measuring needs a GPU."""

import json

import pytest
import torch

from scoutattention.bench.common.measure import relative_error
from scoutattention.bench.gpu import kernels as gpu_kernels
from scoutattention.bench.gpu.kernel_cases import DecodeCase
from scoutattention.bench.gpu.timing import Row, as_json, attempt, driver
from scoutattention.errors import KernelError


def test_a_failing_case_becomes_a_row():
    def fail() -> Row:
        raise KernelError("no room\nand more")

    row = attempt("partial", "B 1", fail)
    assert not row.right
    assert gpu_kernels.line(row, None).split() == ["partial", "B", "1", "FAILED", "KernelError:", "no", "room"]


def test_a_row_says_its_share_of_the_bandwidth():
    row = attempt("partial", "B 1", lambda: Row("", "", 1e-3, 1e-2, seconds=1e-3, moved=2 * 10**9))
    assert row.right
    assert gpu_kernels.line(row, 4e12).split() == [
        "partial",
        "B",
        "1",
        "ok",
        "1.0e-03",
        "1000.0",
        "us",
        "2000",
        "GB/s",
        "50.0%",
    ]
    assert json.loads(json.dumps(as_json(row)))["bytes_per_second"] == 2e12


@pytest.mark.parametrize("error", [0.02, float("nan"), float("inf")])
def test_a_large_error_and_a_nan_are_wrong(error):
    row = Row("partial", "B 1", error, 1e-2)
    assert not row.right
    assert "WRONG" in gpu_kernels.line(row, None)


def test_relative_error():
    want = torch.tensor([3.0, 4.0, -torch.inf])
    assert relative_error(want, want) == 0
    assert relative_error(torch.tensor([3.0, 4.5, -torch.inf]), want) == pytest.approx(0.1)
    assert not relative_error(torch.tensor([3.0, torch.nan, -torch.inf]), want) <= 1
    assert not relative_error(torch.tensor([3.0, 4.0, 0.0]), want) <= 1
    assert relative_error(torch.empty(0), torch.empty(0)) == 0


def test_a_decode_case_fills_its_working_set():
    case = DecodeCase(8, 4, 128)
    assert case.N * 32 * 8 * 8 * 2 * 128 * 2 == 512 << 20
    assert (512 << 20) < case.moved < 1.01 * (512 << 20)


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(KernelError, match="finds no GPU"):
        gpu_kernels.main([])


def test_a_driver_whose_program_is_missing_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert driver() == "unknown"
