"""What tests of single device kernels share: Triton's own columns of the table."""

import pytest

from ..columns import COLUMNS, Column, parameter
from ..conftest import open_column


@pytest.fixture(params=[parameter(column) for column in COLUMNS if column.name.startswith("triton")])
def column(request) -> Column:
    """Where the kernels run: in the interpreter, and compiled on a GPU."""
    return open_column(request.param)
