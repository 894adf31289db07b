"""The command that makes an artifact again, as it is kept in the artifact.

It is normalised, so that it says what shapes the artifact and nothing else: options that have their
default are left out, and so is what only says where to write, how many compilers run, what to
print and what to insist on (`--output`, `--jobs`, `--dump-ir`, `--json`, `--require`).  Targets
have their canonical names.  **Files are named without their folders**: the same model compiled in
another place gives the same bytes, and no artifact tells how somebody's disk is laid out.  What the
source was is fixed by its digest, which stands beside it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath

from fusec.frontend.dims import DimRequest, DimSpec
from fusec.frontend.sources import is_factory

_DEFAULTS: Mapping[str, object] = {
    "mxfp4_align": "pad",
    "tp": 1,
    "dtype": None,
    "fp32_precision": "highest",
    "weights": "embed",
    "attention_mask": False,
    "allow_host_fallback": False,
    "extensions": True,
    "trust_pickle": False,
    "trust_remote_code": False,
    "adapter": None,
    "toolchain": None,
}
_LISTS = ("disable", "quantize", "provider", "tuning")
_FILES = ("adapter", "tuning", "toolchain")


def compile_command(
    source: str | os.PathLike[str],
    name: str,
    targets: Iterable[str],
    dims: Mapping[str, DimRequest],
    options: Mapping[str, object],
) -> str:
    """The `fusec compile` that makes an artifact again, quoted for a shell.

    Args:
        source: as it was given.
        name: of the source, as the artifact has it.
        targets: by their canonical names.
        dims: what was asked of named sizes.
        options: of `fusec.compile`, by keyword.
    """
    given = os.fspath(source)
    words = ["fusec", "compile", given if is_factory(given) else name]
    for target in targets:
        words += ["--target", target]
    for key, request in dims.items():
        words += ["--dim", f"{key}={dim_text(request)}"]
    for key in _LISTS:
        for each in _strings(options.get(key)):
            words += [_flag(key), PurePath(each).name if key in _FILES else each]
    for key, default in _DEFAULTS.items():
        value = options.get(key, default)
        if value == default:
            continue
        if isinstance(value, bool):
            words.append(_flag(key) if value else f"--no-{_flag(key)[2:]}")
        else:
            text = str(value)
            words += [_flag(key), PurePath(text).name if key in _FILES else text]
    return shlex.join(words)


def _flag(keyword: str) -> str:
    return f"--{keyword.replace('_', '-')}"


def _strings(values: object) -> Iterator[str]:
    assert values is None or isinstance(values, Iterable)
    for value in values or ():
        yield os.fspath(value)


def dim_text(request: DimRequest) -> str:
    """A request as `--dim` takes it."""
    if isinstance(request, DimSpec):
        ends = (request.minimum, request.optimum, request.maximum)
        return ":".join("" if end is None else str(end) for end in ends)
    if isinstance(request, tuple):
        return ":".join(map(str, request))
    return str(request)
