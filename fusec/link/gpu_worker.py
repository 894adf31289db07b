"""A process that compiles GPU sources, one after another, for `gpu_compile`.

Each line of the standard input is a job: a source, the name of its target, and where to write the
result.  Each is answered with one line: `{}`, or an error.  A process of its own, because Triton
holds the interpreter's lock while it compiles, and because a compiler that crashes takes no more
than this process with it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import IO

from fusec.diagnostics import FusecError
from fusec.kernels.launch import HipSource
from fusec.link.gpu_checks import GpuSource
from fusec.link.gpu_kernel import CompiledCode, pack
from fusec.link.gpu_sources import source_from_json
from fusec.link.hip_build import build_hip
from fusec.link.triton_build import build_triton
from fusec.target import GPU_TARGETS, Target


def compile_source(source: GpuSource, target: Target) -> CompiledCode:
    """The code object of `source`."""
    if isinstance(source, HipSource):
        return build_hip(source, target)
    return build_triton(source, target)


def main() -> None:
    """Answer jobs until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what compilers print is no answer
    with tempfile.TemporaryDirectory(prefix="fusec-triton-") as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        _serve(sys.stdin, answers)


def _serve(jobs: IO[str], answers: IO[str]) -> None:
    for line in jobs:
        job = json.loads(line)
        answer: dict[str, object] = {}
        try:
            made = compile_source(source_from_json(job["source"]), GPU_TARGETS[job["target"]])
            Path(job["path"]).write_bytes(pack(made))
        except FusecError as error:
            answer = {"message": str(error), "detail": list(error.detail), "hint": error.hint}
        except Exception as error:  # whatever a compiler raises is told to whoever asked for it
            lines = str(error).strip().splitlines() or [""]
            answer = {"message": f"{type(error).__name__}: {lines[0]}", "detail": lines[1:20]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
