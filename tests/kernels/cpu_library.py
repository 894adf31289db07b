"""Builds the CPU kernels and calls them on memory that faults when it is overrun."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
FLAGS = (
    "-O3 -std=c++17 -fPIC -fno-exceptions -fno-rtti -ffunction-sections -fvisibility=hidden "
    "-fno-math-errno -fno-trapping-math"
).split()
DTYPES = ("f32", "bf16", "f16")
# Unit roundoff of the storage types; sums in f32 add a little.
ULP = {"f32": 2.0**-24, "bf16": 2.0**-8, "f16": 2.0**-11}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Memory:
    """A numpy array that ends where an inaccessible page begins, with a canary in front."""

    CANARY = 0xA5

    def __init__(self, array: np.ndarray) -> None:
        payload = np.ascontiguousarray(array)
        page = mmap.PAGESIZE
        pages = (payload.nbytes + page - 1) // page + 1
        self._map = mmap.mmap(-1, (pages + 1) * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        if _libc.mprotect(base + pages * page, page, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
        start = pages * page - payload.nbytes
        raw = np.frombuffer(self._map, np.uint8)
        self._before = raw[:start]
        self._before[:] = self.CANARY
        self.address = base + start
        self.array = raw[start : pages * page].view(payload.dtype).reshape(payload.shape)
        self.array[...] = payload

    def check(self) -> None:
        assert (self._before == self.CANARY).all(), "written in front of the buffer"


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


def host_features() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":")[1].split())
    return set()


def compiler() -> list[str]:
    """g++ if there is one, else the clang inside the `ziglang` wheel."""
    found = shutil.which("g++")
    return [found] if found else [sys.executable, "-m", "ziglang", "c++"]


def compile_object(source: Path, march: str, command: Sequence[str], folder: Path) -> Path:
    """The object of `source`, made anew only if what it is made of has changed."""
    include = KERNELS / "include"
    # The two compilers spell the levels of x86-64 differently.
    name = march.replace("-", "_") if "ziglang" in command else march
    arguments = [*command, *FLAGS, "-I", str(include), f"-march={name}", "-c", str(source), "-o"]
    state = hashlib.sha256(repr(arguments).encode())
    for path in (source, *sorted(include.glob("*/*.h"))):
        state.update(path.read_bytes())
    target = folder / f"{source.parent.name}-{state.hexdigest()[:16]}.o"
    if not target.exists():
        made = target.with_suffix(f".{os.getpid()}")
        done = subprocess.run([*arguments, str(made)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made.rename(target)
    return target


def sources(*, matrices_only: bool = False) -> list[Path]:
    """Every `kernel.cpp`, or only those that multiply matrices, and the core."""
    found = sorted(KERNELS.glob("*/kernel.cpp"))
    if not matrices_only:
        return found
    return [
        path for path in found if path.parent.name == "cpu_core" or "gemm.h" in path.read_text()
    ]


def build(march: str, folder: Path, objects: Path, *, matrices_only: bool = False) -> Path:
    """The library for one `-march`, as one shared object in `folder`."""
    command = compiler()
    chosen = sources(matrices_only=matrices_only)
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda path: compile_object(path, march, command, objects), chosen)
        objects_made = [str(path) for path in made]
    path = folder / "module.so"
    subprocess.run(
        [*command, "-shared", "-o", str(path), *objects_made, "-lpthread", "-lm"],
        check=True,
    )
    return path


# What a host must have to run each build; the last is for the bf16 instructions, which only
# products of matrices use.
LEVELS = {
    "x86-64-v3": {"avx2", "fma", "f16c"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
}
BF16_LEVEL = "cooperlake"
BF16_FEATURES = {"avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512_vnni"}
_modules: dict[str, Module] = {}


def built_module(
    march: str, features: set[str], request: pytest.FixtureRequest, *, matrices_only: bool
) -> Module:
    missing = features - host_features()
    if missing:
        pytest.skip(f"this CPU has no {', '.join(sorted(missing))}")
    if march not in _modules:
        factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
        folder = factory.mktemp(march)
        cache = getattr(request.config, "cache", None)
        objects = cache.mkdir("cpu-kernels") if cache else folder
        _modules[march] = Module(build(march, folder, objects, matrices_only=matrices_only))
    _modules[march].threads(2)
    return _modules[march]


@pytest.fixture(params=list(LEVELS))
def module(request: pytest.FixtureRequest) -> Module:
    """The kernels built for one level of x86-64, on two threads."""
    march: str = request.param
    return built_module(march, LEVELS[march], request, matrices_only=False)


@pytest.fixture(params=[*LEVELS, BF16_LEVEL])
def matrices(request: pytest.FixtureRequest) -> Module:
    """As `module`, and built with bf16 instructions; only kernels that multiply matrices."""
    march: str = request.param
    features = LEVELS.get(march, BF16_FEATURES)
    return built_module(march, features, request, matrices_only=march == BF16_LEVEL)


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Largest error relative to the largest expected value (1 if that is smaller)."""
    assert actual.shape == expected.shape
    assert np.isnan(actual).sum() == np.isnan(expected).sum()
    if actual.size == 0:
        return
    scale = max(1.0, float(np.nanmax(np.abs(expected))))
    error = float(np.nanmax(np.abs(actual - expected))) / scale
    assert error <= tolerance, f"error {error:.3g} exceeds {tolerance:.3g}"
