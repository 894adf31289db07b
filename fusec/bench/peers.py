"""The source of an artifact, run by its own framework in processes of their own.

Each way of running it has a process that computes with as many threads; they and fusec take
turns, several rounds of each, so that what disturbs the machine disturbs all alike.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusec.bench.timing import summary, timed
from fusec.diagnostics import InputError
from fusec.runtime.model import Model

ROUNDS = 5
ROUND_SECONDS = 0.6
"""Of each way in a round; there is always one call."""

LONGEST_START = 600.0
"""Seconds in which a source must be loaded and compiled."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

EAGER, COMPILED = "eager", "torch.compile"


@dataclass(frozen=True, slots=True)
class Source:
    """A source, and how it may be run.

    Attributes:
        name: a path, or `package.module:factory`.
        options: of `eager_source`.
    """

    name: str
    options: Mapping[str, Any]

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways of running it; an ONNX model has no framework but onnxruntime."""
        return (EAGER,) if self.name.endswith(".onnx") else (EAGER, COMPILED)


class Visits:
    """Rounds of a model and of its source."""

    def __init__(
        self,
        source: Source,
        inputs: Mapping[str, Any],
        model: Model,
        report: Callable[[str], None],
    ) -> None:
        self.source = source
        self.inputs = inputs
        self.model = model
        self.report = report

    def compared(self, call: Callable[[], object], iterations: int | None) -> dict[str, Any]:
        """What each way took, beside `call` in the same rounds.

        Raises:
            InputError: the source cannot be run; the message says why.
        """
        with tempfile.TemporaryDirectory(prefix="fusec-bench-") as folder:
            np.savez(Path(folder) / "inputs.npz", **self.inputs)
            workers: list[_Worker] = []
            try:
                for way in self.source.ways:
                    workers.append(self._started(way, Path(folder)))
                    if workers[-1].failed and way == EAGER:
                        reason = workers[-1].failed
                        raise InputError(f"the source cannot be run: {reason}", at=self.source.name)
                return self._rounds(call, workers, iterations)
            finally:
                for worker in workers:
                    worker.stop()

    def _started(self, way: str, folder: Path) -> _Worker:
        self.report(f"starting the source: {way}")
        names = [spec.name for spec in self.model.outputs]
        task = {
            "source": self.source.name,
            "options": dict(self.source.options),
            "outputs": names,
            "inputs": [spec.name for spec in self.model.inputs],
            "file": str(folder / "inputs.npz"),
            "compiled": way == COMPILED,
            "threads": self.model.threads,
        }
        return _Worker(way, task, folder)

    def _rounds(
        self, call: Callable[[], object], workers: list[_Worker], iterations: int | None
    ) -> dict[str, Any]:
        calls = None if iterations is None else max(1, iterations // ROUNDS)
        own: list[float] = []
        for number in range(ROUNDS):
            self.report(f"taking turns with the source: {number + 1} of {ROUNDS}")
            own += round_of(call, calls)
            for worker in workers:
                worker.visit(calls)
        fusec = summary(own)
        ways = [worker.document(float(fusec["median"])) for worker in workers]
        return {"source": self.source.name, "rounds": ROUNDS, "fusec": fusec, "ways": ways}


def round_of(call: Callable[[], object], calls: int | None) -> list[float]:
    """Seconds of the calls of a round."""
    if calls is not None:
        return timed(call, calls)
    taken: list[float] = []
    while not taken or sum(taken) < ROUND_SECONDS:
        taken += timed(call, 1)
    return taken


class _Worker:
    """One way of running a source.

    Attributes:
        way: its name.
        failed: why it gives no times.
    """

    def __init__(self, way: str, task: Mapping[str, Any], folder: Path) -> None:
        self.way = way
        self.name = way
        self.failed: str | None = None
        self.taken: list[float] = []
        self._log = folder / f"{way}.log"
        threads = str(task["threads"] or 1)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fusec.bench.peer", json.dumps(task)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, threads)},
            )
        ready = self._answer()
        if ready is not None:
            self.name = ready["name"]

    def visit(self, calls: int | None) -> None:
        """Let it run a round."""
        if self.failed is not None or self._process.stdin is None:
            return
        self._process.stdin.write(f"{json.dumps(calls)}\n")
        self._process.stdin.flush()
        answer = self._answer()
        if answer is not None:
            self.taken += answer["seconds"]

    def document(self, own: float) -> dict[str, Any]:
        """What it took, and how many times longer that is than `own`."""
        if self.failed is not None:
            return {"way": self.way, "name": self.name, "failed": self.failed}
        found = summary(self.taken)
        ratio = float(found["median"]) / own if own else None
        return {"way": self.way, "name": self.name, "failed": None, **found, "ratio": ratio}

    def stop(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _answer(self) -> dict[str, Any] | None:
        if self._process.stdout is None:
            return None
        ready, _, _ = select.select([self._process.stdout], [], [], LONGEST_START)
        line = self._process.stdout.readline() if ready else ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            self.failed = answer.get("failed")
            return None if self.failed else answer
        self._process.kill()
        self._process.wait()
        self.failed = self._reason() if ready else f"it took more than {LONGEST_START:.0f} s"
        return None

    def _reason(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines()]
        said = [line for line in lines if "Error" in line] or [line for line in lines if line]
        return said[-1][:300] if said else f"it ended with status {self._process.returncode}"
