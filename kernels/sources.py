"""Where the sources of kernels lie: fusec's own, and those of extensions."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

from fusec.diagnostics import InputError
from fusec.kernels.launch import OWN_PACKAGE


@cache
def package_folder(package: str) -> Path:
    """The folder of a Python package.

    Raises:
        InputError: it is not installed, or is no folder.
    """
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    places = [] if spec is None else [*(spec.submodule_search_locations or ())]
    folder = Path(places[0]) if places else None
    if folder is None or not folder.is_dir():
        raise InputError(
            f"the package `{package}`, which holds the source of a kernel, is not there",
            hint="install the extension that it belongs to",
        )
    return folder


def source_path(package: str, file: str) -> Path:
    """The path of a file below the folder of `package`."""
    return package_folder(package) / file


def include_folder() -> Path:
    """The folder of the headers that kernels include as `<fusec/...>`."""
    return package_folder(OWN_PACKAGE) / "include"
