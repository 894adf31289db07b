"""Builds the CPU kernels and calls them on memory that faults when it is overrun."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fusec.kernels.cpu import CORE_SOURCES
from fusec.link.linker import headers_digest
from fusec.link.toolchain import Toolchain, find_toolchain
from fusec.runtime.cpu import host_features, why_not
from fusec.target import CPU_ARCHES, Target

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
DTYPES = ("f32", "bf16", "f16")
# Further ones for the compiler, and for the linker.
FLAGS = os.environ.get("FUSEC_TEST_FLAGS", "").split()
# Unit roundoff of the storage types; sums in f32 add a little.
ULP = {"f32": 2.0**-24, "bf16": 2.0**-8, "f16": 2.0**-11}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Memory:
    """A numpy array that ends where an inaccessible page begins, with a canary in front.

    An emulator of processors may read whole vectors where a mask says less; for it, `SPARE` bytes
    with a canary lie between the array and that page.
    """

    CANARY = 0xA5
    SPARE = int(os.environ.get("FUSEC_TEST_SPARE_BYTES", "0"))

    def __init__(self, array: np.ndarray) -> None:
        payload = np.ascontiguousarray(array)
        page = mmap.PAGESIZE
        pages = (payload.nbytes + self.SPARE + page - 1) // page + 1
        self._map = mmap.mmap(-1, (pages + 1) * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        if _libc.mprotect(base + pages * page, page, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
        end = pages * page - self.SPARE
        start = end - payload.nbytes
        raw = np.frombuffer(self._map, np.uint8)
        self._before, self._behind = raw[:start], raw[end : pages * page]
        self._before[:] = self._behind[:] = self.CANARY
        self.address = base + start
        self.array = raw[start:end].view(payload.dtype).reshape(payload.shape)
        self.array[...] = payload

    def check(self) -> None:
        assert (self._before == self.CANARY).all(), "written in front of the buffer"
        assert (self._behind == self.CANARY).all(), "written behind the buffer"


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Rounds to the storage form of `dtype`; bf16 is held as its bits in uint16."""
    if dtype == "bf16":
        bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        nan = np.isnan(np.asarray(values, np.float32))
        return np.where(nan, 0x7FC0, rounded).astype(np.uint16)
    return np.asarray(values).astype(
        {"f32": np.float32, "f16": np.float16, "f64": np.float64}[dtype]
    )


def decode(stored: np.ndarray, dtype: str) -> np.ndarray:
    """The stored values as f64."""
    if dtype == "bf16":
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return stored.astype(np.float64)


def random(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> np.ndarray:
    return encode(rng.standard_normal(shape).astype(np.float32), dtype)


def blank(shape: Sequence[int], dtype: str) -> np.ndarray:
    """An output full of NaN, so that an element nobody wrote fails the comparison."""
    return encode(np.full(shape, np.nan, np.float32), dtype)


def bits(value: float) -> int:
    """A double as it travels in `params`."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


class Module:
    """A built module: `call` runs one kernel on guarded copies of its buffers."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.fusec_execute.restype = ctypes.c_int64
        self.library.fusec_threads.restype = ctypes.c_int
        self.error: tuple[int, int, int, int] = (0, 0, 0, 0)

    def call(
        self, symbol: str, buffers: Sequence[np.ndarray], params: Sequence[int]
    ) -> list[np.ndarray]:
        """Runs the kernel through `fusec_execute`; gives every buffer as it is afterwards."""
        memories = [Memory(buffer) for buffer in buffers]
        addresses = (ctypes.c_void_p * len(memories))(*[memory.address for memory in memories])
        numbers = (ctypes.c_int64 * len(params))(*params)
        step = (ctypes.c_void_p * 3)(
            ctypes.cast(getattr(self.library, symbol), ctypes.c_void_p).value,
            ctypes.addressof(addresses),
            ctypes.addressof(numbers),
        )
        status = self.library.fusec_execute(step, ctypes.c_int64(1), None)
        error = (ctypes.c_int64 * 4)()
        self.library.fusec_last_error(error)
        self.error = tuple(error)
        assert (status != 0) == (self.error[0] != 0)
        for memory in memories:
            memory.check()
        return [memory.array.copy() for memory in memories]

    def threads(self, count: int) -> None:
        self.library.fusec_set_threads(count)


@dataclass(frozen=True, slots=True)
class Level:
    """What kernels are built for in a test.

    Attributes:
        target: its instructions, as `fusec compile` would use them.
        definitions: flags that put functions in C++ in the place of instructions.
    """

    target: Target
    definitions: tuple[str, ...] = ()


# As for sapphirerapids, but tiles and products of bf16, which few machines have, are functions.
_EMULATED = Level(
    Target("emulated", "cpu", "x86-64-v4", (*CPU_ARCHES["x86-64-v4"].features, "avx512_vnni")),
    ("-DFUSEC_EMULATED_AMX", "-DFUSEC_EMULATED_AVX512BF16"),
)
LEVELS = {name: Level(target) for name, target in CPU_ARCHES.items()} | {"emulated": _EMULATED}
VECTOR_LEVELS = ("x86-64-v3", "x86-64-v4")
MATRIX_LEVELS = (*CPU_ARCHES, "emulated")


def compiler() -> Toolchain:
    """g++ if there is one, else the clang inside the `ziglang` wheel."""
    return find_toolchain("g++" if shutil.which("g++") else "zig")


def compile_object(source: Path, level: Level, toolchain: Toolchain, folder: Path) -> Path:
    """The object of `source`, made anew only if what it is made of has changed."""
    include = KERNELS / "include"
    text = source.read_bytes()
    further = (*level.definitions, *FLAGS)
    flags = (*toolchain.flags(level.target, generated=False), *further)
    parts = (toolchain.version, headers_digest(text, include), *flags)
    digest = hashlib.sha256("\0".join(parts).encode() + text).hexdigest()
    target = folder / f"{source.parent.name}-{digest[:16]}.o"
    if not target.exists():
        made = target.with_suffix(f".{os.getpid()}")
        command = toolchain.compile_command(source, made, level.target, include, generated=False)
        done = subprocess.run([*command, *further], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made.rename(target)
    return target


def sources(*folders: str) -> list[Path]:
    """The `kernel.cpp` of these folders, or of all of them, and of what every module has."""
    if not folders:
        return sorted(KERNELS.glob("*/kernel.cpp"))
    chosen = [KERNELS / folder / "kernel.cpp" for folder in folders]
    return sorted({*chosen, *(KERNELS / source for source in CORE_SOURCES)})


def build(level: Level, folder: Path, objects: Path, folders: Sequence[str] = ()) -> Path:
    """The kernels of `folders`, or all of them, as one shared object in `folder`."""
    toolchain = compiler()
    with ThreadPoolExecutor(2) as pool:
        made = list(
            pool.map(
                lambda path: compile_object(path, level, toolchain, objects), sources(*folders)
            )
        )
    path = folder / "module.so"
    linker = [*toolchain.command, *(["c++"] if toolchain.family == "zig" else []), *FLAGS]
    subprocess.run(
        [*linker, "-shared", "-o", str(path), *map(str, made), "-lpthread", "-lm"],
        check=True,
    )
    return path


_modules: dict[tuple[str, ...], Module] = {}


def skip_unless_it_runs(level: Level) -> None:
    """Skip what this processor has no instructions for; tile registers are asked for."""
    missing = set(level.target.features) - host_features()
    if missing:
        pytest.skip(f"this CPU has no {', '.join(sorted(missing))}")
    assert why_not(level.target.features) is None


def cpu_library(*folders: str, levels: Sequence[str] = VECTOR_LEVELS) -> Callable[..., Module]:
    """A fixture: kernels built for each level that this machine can run, on two threads.

    Args:
        folders: of `kernels`, whose `kernel.cpp` are built; all there are if none is named.
        levels: keys of `LEVELS`; `emulated` builds what is for sapphirerapids for any AVX-512.
    """

    @pytest.fixture(params=list(levels))
    def library(request: pytest.FixtureRequest) -> Module:
        name: str = request.param
        skip_unless_it_runs(LEVELS[name])
        key = (name, *folders)
        if key not in _modules:
            factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
            folder = factory.mktemp(name)
            cache = getattr(request.config, "cache", None)
            objects = cache.mkdir("cpu-kernels") if cache else folder
            _modules[key] = Module(build(LEVELS[name], folder, objects, folders))
        _modules[key].threads(2)
        return _modules[key]

    return library


module = cpu_library()
matrices = cpu_library(
    *(path.parent.name for path in sources() if "fusec/gemm.h" in path.read_text()),
    levels=MATRIX_LEVELS,
)


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Largest error relative to the largest expected value (1 if that is smaller)."""
    assert actual.shape == expected.shape
    assert np.isnan(actual).sum() == np.isnan(expected).sum()
    if actual.size == 0:
        return
    scale = max(1.0, float(np.nanmax(np.abs(expected))))
    error = float(np.nanmax(np.abs(actual - expected))) / scale
    assert error <= tolerance, f"error {error:.3g} exceeds {tolerance:.3g}"
