"""The fake engine of the command's tests."""

from ..cli.conftest import fake_engine

__all__ = ["fake_engine"]
