"""The core of CPU modules: threads, steps and errors."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cpu_library import LEVELS, Module, bits, compile_object, cpu_library, sources

from fusec.dtypes import bf16_to_f32, f32_to_bf16
from fusec.link.toolchain import find_toolchain
from fusec.runtime.cpu import host_features

module = cpu_library("index", "l2_norm", "scan", "softmax")

Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int)


def parallel_for(module: Module, n: int, grain: int, body: Callable[[int, int, int], None]) -> None:
    def call(context: object, begin: int, end: int, thread: int) -> None:
        body(begin, end, thread)

    module.library.fusec_parallel_for(ctypes.c_int64(n), ctypes.c_int64(grain), Body(call), None)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("n", "grain"), [(0, 1), (1, 1), (7, 3), (1000, 1), (1000, 64), (3, 9)])
def test_a_loop_covers_every_item_once(module: Module, threads: int, n: int, grain: int) -> None:
    module.threads(threads)
    assert module.library.fusec_threads() == threads
    seen: list[int] = []
    lock = threading.Lock()

    def body(begin: int, end: int, thread: int) -> None:
        assert 0 <= thread < threads
        assert begin % grain == 0 and (end % grain == 0 or end == n)
        with lock:
            seen.extend(range(begin, end))

    parallel_for(module, n, grain, body)
    assert sorted(seen) == list(range(n))


def test_nested_loops_run_inline(module: Module) -> None:
    counts = np.zeros((6, 50), np.int64)

    def outer(begin: int, end: int, thread: int) -> None:
        for row in range(begin, end):
            owner = threading.get_ident()

            def inner(first: int, last: int, _: int, row: int = row, owner: int = owner) -> None:
                assert threading.get_ident() == owner
                counts[row, first:last] += 1

            parallel_for(module, 50, 7, inner)

    parallel_for(module, 6, 1, outer)
    assert (counts == 1).all()


def test_many_callers_at_once(module: Module) -> None:
    module.threads(3)
    totals = [0] * 4

    def caller(number: int) -> None:
        parts: list[int] = []
        for _ in range(50):
            parallel_for(module, 40, 4, lambda begin, end, _: parts.append(end - begin))
        totals[number] = sum(parts)

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert totals == [2000] * 4


def test_workers_come_and_go(module: Module) -> None:
    x = np.random.default_rng(0).standard_normal((600, 300)).astype(np.float32)
    params = [1, 1, 1, 600, 0, 0, 0, 300, 0, 0, 0, 300, 300, 1, 1]
    results = set()
    for threads in (4, 1, 2, 1, 8, 3) * 5:
        module.threads(threads)
        out = module.call("fusec_softmax_f32", [x, np.zeros_like(x)], params)[-1]
        results.add(out.tobytes())
    assert len(results) == 1
    module.threads(1)
    tasks = len(os.listdir("/proc/self/task"))
    module.threads(6)
    module.call("fusec_softmax_f32", [x, np.zeros_like(x)], params)
    assert len(os.listdir("/proc/self/task")) == tasks + 5
    module.threads(1)
    assert len(os.listdir("/proc/self/task")) == tasks


def test_workers_sleep_between_runs(module: Module) -> None:
    module.threads(4)
    parallel_for(module, 100, 1, lambda *_: None)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.02
    module.threads(1)


FORKS = """
import ctypes, os, sys, threading
library = ctypes.CDLL(sys.argv[1])
Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int)
library.fusec_set_threads(4)

def loop():
    seen = []
    add = lambda _, begin, end, thread: seen.append(end - begin)
    library.fusec_execute(None, ctypes.c_int64(0), None)
    library.fusec_parallel_for(ctypes.c_int64(100), ctypes.c_int64(1), Body(add), None)
    assert sum(seen) == 100

loop()
child = os.fork()
if child == 0:
    loop()
    assert len(os.listdir("/proc/self/task")) == 4
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0

for _ in range(20):  # while a loop runs in another thread
    other = threading.Thread(target=lambda: [loop() for _ in range(5)])
    other.start()
    child = os.fork()
    if child == 0:
        for _ in range(3):
            loop()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    other.join()
loop()
"""


def test_a_forked_child_has_workers_of_its_own(module: Module) -> None:
    path = module.library._name
    subprocess.run([sys.executable, "-c", FORKS, path], check=True, timeout=60)


FORKED_CONVERSIONS = """
import ctypes, os, signal, sys, threading, time
library = ctypes.CDLL(sys.argv[1])
library.fusec_set_threads(4)
count = 1 << 18
wide, narrow = (ctypes.c_float * count)(), (ctypes.c_uint16 * count)()

def convert():
    library.fusec_narrow_bf16(wide, narrow, ctypes.c_int64(count))
    library.fusec_widen_bf16(narrow, wide, ctypes.c_int64(count))

def convert_and_rest():
    while not done:
        convert()
        time.sleep(0.0002)

done = False
other = threading.Thread(target=convert_and_rest)
other.start()
stuck = 0
for _ in range(400):  # while workers fall asleep and are woken
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        convert()
        os._exit(0)
    stuck += os.waitpid(child, 0)[1] != 0
done = True
other.join()
assert stuck == 0, f"{stuck} children are stuck"
"""


def test_a_forked_child_converts_before_it_runs_anything(module: Module) -> None:
    path = module.library._name
    subprocess.run([sys.executable, "-c", FORKED_CONVERSIONS, path], check=True, timeout=120)


@pytest.mark.parametrize("size", [0, 1, 15, 63, 64, 65, 127, 128, 1000, 65536, 100_003])
def test_crc32(module: Module, size: int) -> None:
    if "pclmulqdq" not in host_features():
        pytest.skip("this CPU has no pclmulqdq")
    data = np.random.default_rng(size).integers(0, 256, size + 3, np.uint8)[3:]
    found = module.library.fusec_crc32(ctypes.c_void_p(data.ctypes.data), ctypes.c_int64(size))
    assert found & 0xFFFFFFFF == zlib.crc32(data.tobytes())


def test_execute_runs_steps_until_one_fails(module: Module) -> None:
    """Steps: double by cumsum along an axis of two equal rows, then take with a bad index."""
    x = np.ones((2, 3), np.float32)
    middle, out = np.zeros((2, 3), np.float32), np.full((2, 3), -1.0, np.float32)
    indices = np.array([1, 4])
    scan = [1, 1, 1, 3, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 3, 0]
    take = [1, 12, 1, 1, 1, 1, 1, 1, 2, 2, 8, 0, 0, 0, 0, 0, 1]
    steps = [
        ("fusec_scan_f32", [x, middle], scan),
        ("fusec_index", [middle, indices, out], take),
        ("fusec_scan_f32", [middle, x], scan),
    ]
    keep: list[object] = []
    words: list[int | None] = []
    for symbol, buffers, params in steps:
        addresses = (ctypes.c_void_p * len(buffers))(*[buffer.ctypes.data for buffer in buffers])
        numbers = (ctypes.c_int64 * len(params))(*params)
        keep += [addresses, numbers]
        function = ctypes.cast(getattr(module.library, symbol), ctypes.c_void_p).value
        words += [function, ctypes.addressof(addresses), ctypes.addressof(numbers)]
    table = (ctypes.c_void_p * len(words))(*words)
    seconds = (ctypes.c_double * 3)(-1, -1, -1)
    execute = module.library.fusec_execute
    assert execute(table, ctypes.c_int64(1), seconds) == 0
    assert seconds[0] >= 0 and seconds[1] == -1
    assert middle.tolist() == [[1, 1, 1], [2, 2, 2]]
    assert execute(table, ctypes.c_int64(3), seconds) == 2
    error = (ctypes.c_int64 * 4)()
    module.library.fusec_last_error(error)
    assert list(error) == [1, 4, 2, 1]
    assert out.tolist() == [[2, 2, 2], [-1, -1, -1]]
    assert (x == 1).all(), "a step after the failed one ran"
    indices[1] = -2
    assert execute(table, ctypes.c_int64(3), None) == 0
    module.library.fusec_last_error(error)
    assert error[0] == 0
    assert x.tolist() == [[1, 1, 1], [3, 3, 3]]


def test_errors_of_two_executions_do_not_mix(module: Module) -> None:
    """Each thread sees the error of its own execution, raised in whichever worker."""
    module.threads(3)
    x = np.arange(4000, dtype=np.float32).reshape(2000, 2)
    failures: list[str] = []

    def caller(bad: int) -> None:
        indices = np.arange(2000)
        indices[1500] = bad
        params = [1, 8, 1, 1, 1, 1, 1, 1, 2000, 2000, 8, 0, 0, 0, 0, 0, 1]
        view = Module.__new__(Module)
        view.library = module.library
        for _ in range(30):
            view.call("fusec_index", [x, indices, np.zeros_like(x)], params)
            wanted = (0, 0) if bad < 2000 else (1, bad)
            if view.error[:2] != wanted:
                failures.append(f"{view.error} instead of {wanted}")

    callers = [threading.Thread(target=caller, args=(bad,)) for bad in (5000, 7, 6000)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not failures


def test_unloading_with_live_workers(module: Module) -> None:
    """A process ends, and a module is closed, while workers sleep in it."""
    path = module.library._name
    code = f"""
import ctypes, _ctypes, os
library = ctypes.CDLL({path!r})
library.fusec_set_threads(4)
Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int)
library.fusec_parallel_for(ctypes.c_int64(100), ctypes.c_int64(1), Body(lambda *a: None), None)
assert len(os.listdir("/proc/self/task")) == 4
_ctypes.dlclose(library._handle)
assert len(os.listdir("/proc/self/task")) == 1
again = ctypes.CDLL({path!r})
again.fusec_set_threads(3)
again.fusec_parallel_for(ctypes.c_int64(100), ctypes.c_int64(1), Body(lambda *a: None), None)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("compiler", ["clang++", "g++", "zig"])
def test_every_kernel_builds_with_every_compiler(tmp_path: Path, level: str, compiler: str) -> None:
    if compiler != "zig" and shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    toolchain = find_toolchain(compiler)
    for source in sources():
        assert compile_object(source, LEVELS[level], toolchain, tmp_path).stat().st_size > 0


def test_a_double_travels_as_its_bits(module: Module) -> None:
    x = np.full(8, 3.0, np.float32)
    out = np.zeros(8, np.float32)
    params = [1, 1, 1, 1, 0, 0, 0, 8, 0, 0, 0, 8, 8, bits(16.0), 0]
    after = module.call("fusec_l2_norm_f32", [x, out], params)[-1]
    assert np.allclose(after, 3 / np.sqrt(72 + 16))


@pytest.mark.parametrize("count", [0, 1, 31, 100_003])
def test_bf16_is_widened_and_rounded_as_numpy_does(module: Module, count: int) -> None:
    rng = np.random.default_rng(count)
    values = rng.integers(0, 1 << 32, count + 3, np.uint32).view(np.float32)[3:]
    special = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 3.4e38, 1e-40, 1.00390625, 1.01171875])
    values[: len(special)] = special[:count]
    narrow, wide = np.zeros(count, np.uint16), np.zeros(count, np.float32)
    size = ctypes.c_int64(count)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (values, narrow, wide)]
    module.library.fusec_narrow_bf16(pointers[0], pointers[1], size)
    np.testing.assert_array_equal(narrow, f32_to_bf16(values))
    module.library.fusec_widen_bf16(pointers[1], pointers[2], size)
    np.testing.assert_array_equal(wide.view(np.uint32), bf16_to_f32(narrow).view(np.uint32))
