"""What tests of kernels share."""

from collections.abc import Iterator

import pytest

from ..runtime.streams import FakeRuntime


@pytest.fixture
def runtime() -> Iterator[FakeRuntime]:
    """A device's runtime, whose streams end with the test."""
    fake = FakeRuntime()
    yield fake
    fake.end()
