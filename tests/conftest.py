"""What tests of several folders share."""

from pathlib import Path

import pytest

from .models import families
from .tiny import save


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, Path]:
    """Directories of tiny random models, at least one of each supported family."""
    root = tmp_path_factory.mktemp("tiny")
    return {family: save(families.make(family), root / family) for family in families.FAMILIES}
