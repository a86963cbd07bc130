"""What tests of several folders share."""

from pathlib import Path

import pytest

from scoutattention.models import calibration

from .models import families
from .tiny import save


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
