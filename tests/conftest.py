"""What tests of several folders share."""

import os
from pathlib import Path

import pytest
import torch

from scoutattention.models import calibration

from .models import families
from .tiny import save


def pytest_configure(config: pytest.Config) -> None:
    """Tests that need a GPU are refused where there is none: that all of them were left out would look like success."""
    if config.option.markexpr != "gpu":
        return
    if not torch.cuda.is_available():
        pytest.exit(f"tests on a GPU need one, and PyTorch {torch.__version__} finds none: run make test", returncode=2)
    if os.environ["TRITON_INTERPRET"] != "0":
        pytest.exit("tests on a GPU need compiled kernels: run make test-gpu, or set TRITON_INTERPRET=0", returncode=2)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
"""Values of `EngineConfig.device`; the second needs a GPU."""


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    """Where an engine runs."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, Path]:
    """Directories of tiny random models, at least one of each supported family."""
    root = tmp_path_factory.mktemp("tiny")
    return {family: save(families.make(family), root / family) for family in families.FAMILIES}


@pytest.fixture(scope="session", autouse=True)
def no_stored_calibrations(tmp_path_factory):
    """What the user has stored must not change what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setattr(calibration, "default_cache_dir", lambda: folder)
        yield


@pytest.fixture
def stored_here(tmp_path, monkeypatch) -> Path:
    """Calibrations are stored in this folder, and found there."""
    monkeypatch.setattr(calibration, "default_cache_dir", lambda: tmp_path)
    return tmp_path / "calibrations"
