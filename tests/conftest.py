"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

# A machine that is busy with something else is no reason to fail.
settings.register_profile("fusec", deadline=None)
settings.load_profile("fusec")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that rewrites golden files."""
    parser.addoption("--update-golden", action="store_true", help="write what came out")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu(arch)` on a machine without such a GPU."""
    for marker in item.iter_markers("gpu"):
        import torch

        (arch,) = marker.args
        if not torch.cuda.is_available():
            pytest.skip(f"it needs an {arch} GPU, and PyTorch sees none")
        major, minor = torch.cuda.get_device_capability()
        if f"sm_{major}{minor}" != arch:
            pytest.skip(f"it needs an {arch} GPU; this one is sm_{major}{minor}")


@pytest.fixture(scope="module")
def quiet_progress() -> Iterator[None]:
    """Without the progress bars of transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
