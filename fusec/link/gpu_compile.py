"""Compiles GPU sources: those that are kept are read, the others compiled by several processes."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from fusec.diagnostics import FusecError
from fusec.link.cache import ObjectCache
from fusec.link.gpu_checks import GpuSource
from fusec.link.gpu_kernel import CompiledCode, pack, unpack
from fusec.link.gpu_sources import source_digest, source_json
from fusec.target import Target

_COMPILER_SETTINGS = ("TRITON_", "AMDGCN_", "LLVM_", "MLIR_", "DISABLE_LLVM_OPT", "NVPTX_")
"""Environment variables that change what Triton builds begin with these; it never sees them."""


class CompileError(FusecError):
    """A compiler refuses a source, or crashes on it.

    Attributes:
        source: that it could not compile.
    """

    def __init__(
        self, source: GpuSource, message: str, detail: tuple[str, ...], hint: str | None
    ) -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.source = source


@dataclass(frozen=True, slots=True)
class CompiledSources:
    """Code by source, and how many sources were compiled and how many were kept."""

    code: Mapping[GpuSource, CompiledCode]
    compiled: int
    cached: int


def compile_sources(
    sources: Sequence[GpuSource],
    target: Target,
    cache: ObjectCache,
    *,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> CompiledSources:
    """The code object of each source.

    Where all of them are kept, no compiler is imported or started.

    Args:
        sources: without repetition.
        target: for what.
        cache: of code objects.
        jobs: how many compilers may run at a time.
        progress: is told how many sources are ready, and of how many.

    Raises:
        CompileError: a compiler refuses a source, or crashes on it.
        InputError: Triton is not installed.
    """
    digests = {source: source_digest(source, target) for source in sources}
    found = {source: _kept(cache, digest) for source, digest in digests.items()}
    code = {source: kept for source, kept in found.items() if kept is not None}
    missing = [source for source, kept in found.items() if kept is None]
    cached = len(code)
    if progress is not None:
        progress(cached, len(sources))
    if missing:
        with _Workers(min(jobs, len(missing)), target) as workers:
            for source, made in workers.compile(missing):
                cache.keep_bytes(digests[source], pack(made))
                code[source] = made
                if progress is not None:
                    progress(len(code), len(sources))
    return CompiledSources({source: code[source] for source in sources}, len(missing), cached)


def _kept(cache: ObjectCache, digest: str) -> CompiledCode | None:
    path = cache.find(digest)
    return None if path is None else unpack(path.read_bytes())


class _Workers:
    """Processes that compile, each of which takes the next source when it is done with one."""

    def __init__(self, count: int, target: Target) -> None:
        self.target = target
        self.folder = tempfile.TemporaryDirectory(prefix="fusec-", ignore_cleanup_errors=True)
        self.pool = ThreadPoolExecutor(count)
        self.all = [_Worker(Path(self.folder.name), number) for number in range(count)]
        self.idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self.all:
            self.idle.put(worker)

    def __enter__(self) -> _Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            for worker in self.all:
                worker.process.kill()
        self.pool.shutdown(cancel_futures=True)
        for worker in self.all:
            worker.close()
        self.folder.cleanup()

    def compile(self, sources: Sequence[GpuSource]) -> Iterator[tuple[GpuSource, CompiledCode]]:
        """Each source with its code, in the order in which they become ready."""
        pending = {self.pool.submit(self._compile, source): source for source in sources}
        for done in as_completed(pending):
            yield pending[done], done.result()

    def _compile(self, source: GpuSource) -> CompiledCode:
        worker = self.idle.get()
        try:
            return worker.compile(source, self.target)
        finally:
            self.idle.put(worker)


class _Worker:
    """One process, and what it says on its standard error stream."""

    def __init__(self, folder: Path, number: int) -> None:
        self.made = folder / f"{number}.packed"
        self.errors: IO[bytes] = (folder / f"{number}.errors").open("w+b")
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_COMPILER_SETTINGS)
        }
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        environment["TMPDIR"] = str(folder)  # what a process leaves there that is killed goes, too
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fusec.link.gpu_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            text=True,
        )

    def compile(self, source: GpuSource, target: Target) -> CompiledCode:
        """The code of `source`.

        Raises:
            CompileError: it is refused, or the process ends.
        """
        job = {"source": source_json(source), "target": target.arch, "path": str(self.made)}
        line = ""
        with suppress(BrokenPipeError):
            print(json.dumps(job), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline() if self.process.stdout is not None else ""
        if not line:
            raise self._ended(source)
        answer = json.loads(line)
        if answer:
            detail, hint = tuple(answer["detail"]), answer.get("hint")
            raise CompileError(source, answer["message"], detail, hint)
        made = unpack(self.made.read_bytes())
        if made is None:
            raise CompileError(source, "its compiler wrote a damaged result", (), None)
        return made

    def close(self) -> None:
        """Wait for the end of the process, which comes with the end of its input."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self.process.wait()
        self.errors.close()

    def _ended(self, source: GpuSource) -> CompileError:
        status = self.process.wait()
        how = f"with status {status}" if status >= 0 else f"by signal {-status}"
        self.errors.seek(0)
        lines = self.errors.read().decode("utf-8", "replace").strip().splitlines()
        return CompileError(source, f"its compiler ended {how}", tuple(lines[-12:]), None)
