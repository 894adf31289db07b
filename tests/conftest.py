"""What all tests share."""

from __future__ import annotations

import pytest
from hypothesis import settings

# A machine that is busy with something else is no reason to fail.
settings.register_profile("fusec", deadline=None)
settings.load_profile("fusec")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that rewrites golden files."""
    parser.addoption("--update-golden", action="store_true", help="write what came out")
