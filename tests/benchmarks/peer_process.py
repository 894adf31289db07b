"""The processes of `peers.py`: started, told what to do, and given up on."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peer_table import Result
from peer_workloads import Workload

SCRIPT = Path(__file__).parent / "peer_worker.py"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LONGEST_REASON = 300
MOST_CALLS = 1000
"""Of one visit."""

VISIT_LIMIT = 60.0
"""Seconds after which a peer that does not answer is given up on, beside those it may take."""


def _environment(threads: int) -> dict[str, str]:
    """The variables of a process that computes with as many threads."""
    return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}


def _reason(log: Path, status: int) -> str:
    """Why a process ended, from the last line that it wrote, or from the signal that ended it."""
    if status < 0:
        return f"it died of {signal.Signals(-status).name}"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    said = [line for line in lines if "Error" in line or "error:" in line]
    text = (said or [line for line in lines if line] or [f"exit status {status}"])[-1]
    return text[:LONGEST_REASON]


class Step:
    """What is done once for a workload, in a process that has ended.

    Attributes:
        failed: why it did not succeed; empty if it did.
    """

    def __init__(self, name: str, folder: Path, options: Sequence[str], limit: float) -> None:
        log = folder / f"{name}.log"
        command = [sys.executable, str(SCRIPT), name, str(folder), *options]
        with log.open("w") as stream:
            try:
                done = subprocess.run(command, stdout=stream, stderr=stream, timeout=limit)
            except subprocess.TimeoutExpired:
                self.failed = f"it took more than {limit:.0f} s"
                return
        self.failed = _reason(log, done.returncode) if done.returncode else ""


class Worker:
    """A peer with one workload at one number of threads, in a process of its own.

    Attributes:
        peer: its name.
        threads: that it computes with.
        failed: why it gives no times.
    """

    def __init__(self, peer: str, threads: int, failed: str | None = None) -> None:
        self.peer, self.threads, self.failed = peer, threads, failed
        self._process: subprocess.Popen[str] | None = None
        self._log = Path()
        self._ready: dict[str, Any] = {}
        self._rounds: list[dict[str, list[float]]] = []

    def start(self, folder: Path, options: Sequence[str], limit: float) -> None:
        """Let it compile the workload."""
        self._log = folder / f"{self.peer}{self.threads}.log"
        how = ["--peer", self.peer, "--threads", str(self.threads)]
        command = [sys.executable, str(SCRIPT), "run", str(folder), *options, *how]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(self.threads),
                text=True,
            )
        self._ready = self._answer(limit)

    def pin(self, processors: Sequence[int]) -> None:
        """Put it on these processors."""
        self._ask("pin " + ",".join(map(str, processors)), VISIT_LIMIT)

    def visit(self, seconds: float) -> None:
        """Let it run for as long."""
        if answer := self._ask(f"{seconds} {MOST_CALLS}", VISIT_LIMIT + seconds):
            self._rounds.append(answer)

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def result(self, workload: Workload) -> Result:
        """What was found out."""
        return Result(
            workload.name,
            self.threads,
            self.peer,
            workload.goal,
            self.failed or "",
            self._ready.get("note", ""),
            self._ready.get("error"),
            self._ready.get("setup"),
            [each["wall"] for each in self._rounds],
            [each["processor"] for each in self._rounds],
        )

    def _ask(self, line: str, limit: float) -> dict[str, Any]:
        """Its answer to `line`; nothing once it has failed."""
        if self.failed is not None:
            return {}
        assert self._process is not None and self._process.stdin is not None
        try:
            print(line, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass  # the answer says so
        return self._answer(limit)

    def _answer(self, limit: float) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        end = time.monotonic() + limit
        if not select.select([self._process.stdout], [], [], end - time.monotonic())[0]:
            self.failed = f"no answer within {limit:.0f} s"
            self._process.kill()
            return {}
        line = self._process.stdout.readline()
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        self.failed = _reason(self._log, self._process.wait())
        return {}
