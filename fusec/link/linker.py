"""Compiles what a lowered graph calls, links it, and checks that every symbol is there."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fusec.diagnostics import FusecError
from fusec.kernels.cpu import CORE_SOURCES
from fusec.kernels.launch import OWN_PACKAGE
from fusec.kernels.sources import include_folder, source_path
from fusec.link.cache import ObjectCache
from fusec.link.elf import dynamic_symbols
from fusec.link.toolchain import Toolchain
from fusec.lower.codegen_cpp import print_file
from fusec.lower.steps import Lowered
from fusec.runtime.cpu import CORE_SYMBOLS, PROBE_SYMBOLS
from fusec.target import Target

LIBRARY_SYMBOLS = frozenset(
    "abort calloc clock_gettime fprintf fputs free getpid madvise malloc memcmp memcpy memmove "
    "memset mmap munmap posix_memalign sched_getaffinity sched_yield stderr strlen syscall sysconf "
    "pthread_atfork pthread_cond_broadcast pthread_cond_destroy pthread_cond_init "
    "pthread_cond_signal pthread_cond_wait pthread_create pthread_getspecific pthread_join "
    "pthread_key_create pthread_key_delete pthread_mutex_destroy pthread_mutex_init "
    "pthread_mutex_lock pthread_mutex_unlock pthread_once pthread_self pthread_setspecific "
    "__register_atfork __sched_cpucount __tls_get_addr __memcpy_chk __fprintf_chk "
    "__stack_chk_fail __cxa_finalize".split()
)
"""What a module may take from the C library, besides the functions of mathematics."""

_MATHEMATICS = frozenset(
    "acos acosh asin asinh atan atan2 atanh ceil cos cosh erf erfc exp exp2 expm1 fabs floor fma "
    "fmod ldexp log log10 log1p log2 nearbyint pow rint round sin sincos sinh sqrt tan tanh "
    "tgamma trunc".split()
)

_INCLUDES = re.compile(rb'^\s*#\s*include\s*(?:<(fusec/[\w./-]+)>|"([^"\n]+)")', re.MULTILINE)

FUNCTIONS_PER_FILE = 24
"""Generated functions of one file: files are compiled in parallel."""


class LinkError(FusecError):
    """Code that the program calls cannot be compiled, or is not there."""


@dataclass(frozen=True, slots=True)
class Linked:
    """A module.

    Attributes:
        code: the shared object.
        sizes: bytes of each exported function.
        compiled: objects that had to be compiled.
        cached: objects that were in the cache.
    """

    code: bytes
    sizes: dict[str, int]
    compiled: int
    cached: int


@dataclass(frozen=True, slots=True)
class _Unit:
    """One file to compile.

    Attributes:
        name: of the file.
        text: its content.
        folder: where headers lie that it includes by a name in quotes; `None` if it is generated.
    """

    name: str
    text: bytes
    folder: Path | None

    @property
    def generated(self) -> bool:
        """Whether it was printed for this program."""
        return self.folder is None


def link(
    lowered: Lowered,
    toolchain: Toolchain,
    cache: ObjectCache,
    *,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Linked:
    """The module that holds every function that `lowered` calls.

    The same graph gives the same bytes with the same toolchain.

    Args:
        lowered: a lowered graph.
        toolchain: to compile and link with.
        cache: of objects.
        jobs: how many compilers may run at a time.
        progress: is told how many objects are ready, and of how many.

    Raises:
        LinkError: the compiler refuses a file, or a symbol is not there.
    """
    units = _units(lowered)
    with tempfile.TemporaryDirectory(prefix="fusec-") as folder:
        work = _Work(toolchain, lowered.target, include_folder(), cache, Path(folder))
        objects: list[Path] = []
        with ThreadPoolExecutor(max(1, jobs)) as pool:
            for done, (path, was_cached) in enumerate(pool.map(work.compiled, units), start=1):
                objects.append(path)
                work.cached += was_cached
                if progress is not None:
                    progress(done, len(units))
        code = work.linked(objects, _exports(lowered))
    symbols = dynamic_symbols(code)
    _check(lowered, symbols.defined, symbols.undefined)
    return Linked(code, symbols.defined, len(units) - work.cached, work.cached)


def _units(lowered: Lowered) -> list[_Unit]:
    core = [(OWN_PACKAGE, source) for source in CORE_SOURCES]
    used = sorted({(kernel.package, kernel.source) for kernel in lowered.kernels if kernel.source})
    units: list[_Unit] = []
    for package, source in dict.fromkeys((*core, *used)):
        path = source_path(package, source)
        name = source if package == OWN_PACKAGE else f"{package}/{source}"
        units.append(_Unit(name.replace("/", "_"), _read(path), path.parent))
    functions = sorted(lowered.functions, key=lambda function: function.symbol)
    for number, start in enumerate(range(0, len(functions), FUNCTIONS_PER_FILE)):
        part = functions[start : start + FUNCTIONS_PER_FILE]
        units.append(_Unit(f"generated_{number}.cpp", print_file(part).encode(), None))
    return units


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LinkError(
            f"the source of a kernel cannot be read: {error.strerror}", at=str(path)
        ) from None


def headers_digest(text: bytes, include: Path, folder: Path | None = None) -> str:
    """The digest of the headers that a source includes, however indirectly.

    Args:
        text: the source.
        include: where `<fusec/...>` lie.
        folder: where `"..."` lie, beside the source; a header's own are beside it.

    Raises:
        LinkError: a header cannot be read.
    """
    found: dict[str, bytes] = {}
    wanted = [*_included(text, include, folder)]
    while wanted:
        name, path = wanted.pop()
        if name not in found:
            found[name] = _read(path)
            wanted += _included(found[name], include, path.parent)
    state = hashlib.sha256()
    for name, header in sorted(found.items()):
        state.update(name.encode() + b"\0" + hashlib.sha256(header).digest())
    return state.hexdigest()


def _included(text: bytes, include: Path, folder: Path | None) -> Iterator[tuple[str, Path]]:
    """The headers that a file names, each with its path."""
    for ours, beside in _INCLUDES.findall(text):
        if ours:
            yield ours.decode(), include / ours.decode()
        elif folder is not None:
            path = folder / beside.decode()
            yield os.path.relpath(path, include), path


def _exports(lowered: Lowered) -> tuple[str, ...]:
    return (*CORE_SYMBOLS, *PROBE_SYMBOLS, *sorted(kernel.symbol for kernel in lowered.kernels))


class _Work:
    def __init__(
        self,
        toolchain: Toolchain,
        target: Target,
        include: Path,
        cache: ObjectCache,
        folder: Path,
    ) -> None:
        self.toolchain = toolchain
        self.target = target
        self.include = include
        self.cache = cache
        self.folder = folder
        self.cached = 0

    def compiled(self, unit: _Unit) -> tuple[Path, bool]:
        """The object of `unit`, and whether it was there already."""
        flags = self.toolchain.flags(self.target, generated=unit.generated)
        state = hashlib.sha256()
        headers = headers_digest(unit.text, self.include, unit.folder)
        for part in (self.toolchain.version, headers, *flags):
            state.update(part.encode() + b"\0")
        state.update(unit.text)
        digest = state.hexdigest()
        found = self.cache.find_object(digest)
        if found is not None:
            return found, True
        source = self.folder / unit.name
        source.write_bytes(unit.text)
        made = source.with_suffix(".o")
        command = self.toolchain.compile_command(
            source, made, self.target, self.include, generated=unit.generated
        )
        if unit.folder is not None:
            command += ["-iquote", str(unit.folder)]
        self._run(command, f"`{unit.name}` does not compile")
        return self.cache.keep(digest, made), False

    def linked(self, objects: Sequence[Path], exports: Sequence[str]) -> bytes:
        """The shared object made of `objects`, exporting `exports` alone."""
        script = self.folder / "exports.map"
        script.write_text("{ global: " + " ".join(f"{name};" for name in exports) + " local: *; };")
        target = self.folder / "module.so"
        self._run(self.toolchain.link_command(objects, script, target), "the module does not link")
        return target.read_bytes()

    def _run(self, command: list[str], message: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder)
        if done.returncode != 0:
            lines = tuple(done.stderr.strip().splitlines()[:20])
            raise LinkError(
                message,
                at=f"{self.toolchain.version}, for {self.target.arch}",
                detail=lines,
                hint="try another compiler with `--toolchain`",
            )


def _check(lowered: Lowered, defined: dict[str, int], undefined: frozenset[str]) -> None:
    """Refuse a module that lacks what the program calls, or needs what no system has."""
    for kernel in lowered.kernels:
        if kernel.symbol not in defined:
            raise LinkError(
                f"`{kernel.symbol}`, which computes `{kernel.op}` for `{lowered.target.name}`, "
                f"is not in {kernel.source or 'the generated code'}",
                at=kernel.node,
                hint=f"the record `{kernel.name}` names a function that its source does not define",
            )
    for symbol in CORE_SYMBOLS:
        if symbol not in defined:
            raise LinkError(f"the core does not define `{symbol}`", at=CORE_SOURCES[0])
    unknown = sorted(symbol for symbol in undefined if not _in_a_library(symbol))
    if unknown:
        users = ", ".join(f"`{symbol}`" for symbol in unknown)
        raise LinkError(
            f"the module for `{lowered.target.name}` needs {users}, which no library gives",
            hint="a kernel declares a function that no source defines",
        )


def _in_a_library(symbol: str) -> bool:
    name = symbol.partition("@")[0]
    return name in LIBRARY_SYMBOLS or name in _MATHEMATICS or name.removesuffix("f") in _MATHEMATICS
