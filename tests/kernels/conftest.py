"""What tests of kernels share: a column of the table, and memory that is poisoned before it is written."""

from collections.abc import Iterator

import pytest
import torch

from .columns import COLUMNS, Column, close, parameter


@pytest.fixture(params=[parameter(column) for column in COLUMNS])
def column(request) -> Column:
    """An implementation; random numbers are the same for all of them."""
    return open_column(request.param)


def open_column(column: Column) -> Column:
    """A column that this process can run; the test is skipped where it cannot."""
    if column.absent_because is not None:
        pytest.skip(column.absent_because)
    torch.manual_seed(0)
    return column


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New memory holds NaN or the largest integer, so that a number which no kernel has written is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session", autouse=True)
def columns_closed() -> Iterator[None]:
    """The threads of the native column end with the session."""
    yield
    close()
