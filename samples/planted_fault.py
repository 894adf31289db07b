"""Compiles with a fault in a kernel, to see `fusec verify` find it.

    python samples/planted_fault.py gate llama --target cpu -o wrong.fusec

The first word names the fault; what follows goes to `fusec compile`, which runs in a copy of the
package where one line of a kernel is another one.  Nothing else is changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fusec

PACKAGE = Path(fusec.__file__).resolve().parent


@dataclass(frozen=True)
class Fault:
    """A line that is replaced.

    Attributes:
        about: what is wrong then.
        file: of the package.
        right: what stands there, once.
        wrong: what takes its place.
    """

    about: str
    file: str
    right: str
    wrong: str


FAULTS = {
    "eps": Fault(
        "RMSNorm ignores its eps",
        "kernels/rms_norm/kernel.cpp",
        "static_cast<float>(n) + eps);",
        "static_cast<float>(n));",
    ),
    "gate": Fault(
        "gate and up projection are swapped",
        "kernels/include/fusec/gemm.h",
        "return activate(activation, gate) * up;",
        "return activate(activation, up) * gate;",
    ),
    "scale": Fault(
        "each block of an mxfp4 weight has the scale of the next one",
        "kernels/include/fusec/quantised.h",
        "k / MX_GROUP * MX_GROUP + column);",
        "(k / MX_GROUP + 1) * MX_GROUP % quantised_depth(weight.k) + column);",
    ),
}


def plant(fault: Fault, folder: Path) -> None:
    """Copy the package into `folder`, with the fault in it."""
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / PACKAGE.name / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.right) != 1:
        raise SystemExit(f"error: `{fault.file}` does not have `{fault.right}` once")
    path.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")


def compile_with(fault: Fault, words: Sequence[str | Path]) -> int:
    """Run `fusec compile` with a fault; gives its exit code."""
    with tempfile.TemporaryDirectory(prefix="fusec-fault-") as folder:
        plant(fault, Path(folder))
        paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        done = subprocess.run(
            [sys.executable, "-P", "-m", "fusec", "compile", *words],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        return done.returncode


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compile with a fault in a kernel.")
    listed = "; ".join(f"{name}: {fault.about}" for name, fault in FAULTS.items())
    parser.add_argument("fault", choices=FAULTS, help=listed)
    parser.add_argument("words", nargs=argparse.REMAINDER, help="what `fusec compile` takes")
    given = parser.parse_args()
    raise SystemExit(compile_with(FAULTS[given.fault], given.words))
