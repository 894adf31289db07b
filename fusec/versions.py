"""The packages that fusec works with, and the versions it was tested with."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tested:
    """Versions of a package.

    Attributes:
        oldest: that fusec asks for.
        newest: that its tests ran with.
        needed: what it is for.
        extra: of the distribution of fusec, that installs it; empty where fusec always does.
    """

    oldest: str
    newest: str
    needed: str
    extra: str = ""


PACKAGES: Mapping[str, Tested] = {
    "numpy": Tested("1.26", "2.4.6", "everything"),
    "networkx": Tested("3.2", "3.6.1", "compiling"),
    "typer": Tested("0.12", "0.29.2", "the command line"),
    "rich": Tested("13", "15.0.0", "the command line"),
    "torch": Tested("2.11", "2.13.0", "PyTorch modules and model folders", "torch"),
    "safetensors": Tested("0.4", "0.8.0", "weights of model folders", "torch"),
    "transformers": Tested("5.17", "5.23.0", "Hugging Face model folders", "huggingface"),
    "tokenizers": Tested("0.20", "0.23.3", "`text` records in batches", "huggingface"),
    "onnx": Tested("1.17", "1.23.2", "ONNX files", "onnx"),
    "triton": Tested("3.6", "3.9.0", "compiling for GPU targets", "gpu"),
    "msgpack": Tested("1.0", "1.2.4", "reading code objects", "gpu"),
    "pyelftools": Tested("0.30", "0.33", "reading code objects", "gpu"),
    "onnxruntime-rocm": Tested(
        "1.22.2.post3", "1.22.2.post3", "operations left residual on the CPU", "residual"
    ),
}
"""By name; a test compares them with `pyproject.toml` and `constraints.txt`."""


def found_version(package: str) -> str | None:
    """The installed version of a package, if it is installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def outside(package: str, version: str) -> str | None:
    """Why `version` is none that was tested, if it is not."""
    tested = PACKAGES[package]
    if _key(version) < _key(tested.oldest):
        return f"older than {tested.oldest}, which fusec needs"
    if _key(version) > _key(tested.newest):
        return f"newer than {tested.newest}, the last that was tested"
    return None


def _key(version: str) -> tuple[int, ...]:
    """The numbers of a release; what follows them, such as `+rocm6.4`, does not matter."""
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in found[0].split(".")] if found else [0]
    return tuple([*numbers, 0, 0, 0][:3])
