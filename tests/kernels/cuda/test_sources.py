"""The CUDA kernels compile without a GPU, and take as few instructions as they were written for."""

import re
import sys
from collections.abc import Iterator

import pytest
import torch

from scoutattention.bench.kernels.compile import some
from scoutattention.bench.kernels.instructions import longest_loop, main, page_instructions
from scoutattention.config import EngineConfig
from scoutattention.engine.device import kernels_for
from scoutattention.errors import ConfigError, KernelError
from scoutattention.kernels.cuda import base, choice, factors, main_dims, scores
from scoutattention.kernels.cuda.base import SOURCES, CudaLaunch
from scoutattention.kernels.cuda.ops import CudaOps
from scoutattention.kernels.reference_factors import Factors
from scoutattention.types import TopBlocks

from .emulator import shared_bytes

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")


def launches() -> Iterator[CudaLaunch]:
    for G, D, P, dtype in (
        (4, 128, 32, torch.bfloat16),
        (7, 64, 16, torch.float32),
        (12, 16, 32, torch.float16),
        (1, 80, 32, torch.bfloat16),
    ):
        q, words = some(2, 8, G, D, dtype=dtype), some(64, 8, -(-D // 16), P, 4, dtype=torch.uint8)
        made = some(2, 8, G, 300)
        bounds, pages = some(64, 8, 2, D, dtype=torch.float16), some(2, 8, 300, dtype=torch.int32)
        closed = some(2, dtype=torch.int64)
        yield scores.score_launch(q, (words, bounds), pages, closed, made, 0.1)
        yield scores.project_launch(q, some(2, 8, D // 2, D), some(2, 8, G, D // 2))
        for blocks in (100, 300, 3000):
            result = TopBlocks(some(2, 8, 32, dtype=torch.int64), some(2, 8, 32), some(2, 8, blocks))
            yield choice.top_launch(some(2, 8, G, blocks), closed, result, (1, 1), largest=False)
        yield main_dims.rotation_launch(some(8, D, D), some(8, D, D))
        for wide in (torch.float32, torch.float64):
            matrices = some(8, min(D, 64), min(D, 64), dtype=wide)
            yield factors.factors_launch(matrices, Factors(matrices, matrices))
    matrices = some(8, 128, 128)
    yield factors.factors_launch(matrices, Factors(matrices, matrices))


def test_every_source_compiles_for_every_gpu():
    sources = set()
    for launch in launches():
        sources.add(launch.source)
        for architecture in ARCHITECTURES:
            code = launch.compile(architecture)
            assert launch.kernel.encode() in code
    assert sources == {path.stem for path in SOURCES.glob("*.cu")}


@pytest.mark.parametrize(("channels", "most"), [(16, 100), (32, 115), (64, 145), (128, 210)])
def test_a_page_takes_few_instructions(channels, most):
    assert 50 < page_instructions(channels) <= most


def test_code_without_a_loop_is_not_counted():
    with pytest.raises(KernelError, match="no loop"):
        longest_loop(".L_x_0:\n /*0000*/ EXIT ;")


def test_instructions_are_printed(capsys):
    main(["--arch", "sm_80"])
    assert re.search(r"128 channels +\d+\.\d", capsys.readouterr().out)


def test_cuda_kernels_are_for_a_gpu():
    with pytest.raises(ConfigError, match="kernels='cuda' are for an NVIDIA GPU"):
        CudaOps(torch.device("cpu"))


def test_a_gpu_has_cuda_kernels_where_their_compiler_is(monkeypatch):
    gpu, config = torch.device("cuda"), EngineConfig()
    assert kernels_for(config, gpu) == "cuda"
    for missing in ("cuda", "cuda.core"):

        def find(name, missing=missing):
            if name.startswith(f"{missing}."):
                raise ModuleNotFoundError(f"No module named {missing!r}")
            return None if name == missing else name

        monkeypatch.setattr("importlib.util.find_spec", find)
        assert kernels_for(config, gpu) == "triton"


def test_without_cuda_core_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    monkeypatch.delitem(sys.modules, base.__name__)
    with pytest.raises(KernelError, match=r"pip install 'scout-attention\[cuda\]'"):
        __import__(base.__name__)


@pytest.mark.parametrize(("rows", "parts"), [(64, 34), (32, 10), (64, 4), (700, 34), (1, 1), (8, 400)])
def test_programs_of_scores_end_together(rows, parts):
    """No other number of programs that share a row would end sooner, by whole rounds of what a device holds."""
    places = 528

    def time(count):
        return -(-rows * count // places) * (1 + -(-parts // count))

    count = scores.programs(rows, parts, places)
    assert 1 <= count <= parts
    assert time(count) == min(time(-(-parts // each)) for each in range(1, scores.LONGEST + 1))
    assert scores.programs(rows, 0, places) == 0


@pytest.mark.parametrize("channels", range(16, scores.MOST_CHANNELS + 1, 16))
@pytest.mark.parametrize("positions", [16, 32])
@pytest.mark.parametrize("programs", [1, 100_000])
def test_what_a_program_of_scores_holds_fits_its_memory(channels, positions, programs):
    how = scores.reading(channels, programs, 132)
    assert (how == scores.FEW) == (programs == 1)
    assert shared_bytes(how, channels, positions) <= 48 << 10
    assert (how.stages - 1) * how.group <= scores.BATCH
    assert scores.BATCH % how.group == 0


def test_sizes_without_a_kernel_are_known():
    assert scores.has_kernel(128, 32)
    assert not scores.has_kernel(100, 32)
    assert not scores.has_kernel(128, 8)
    assert not scores.has_kernel(scores.MOST_CHANNELS + 16, 32)
    assert choice.has_kernel(16384, 256)
    assert not choice.has_kernel(16385, 256)
