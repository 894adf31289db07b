"""The drivers of HIP and CUDA, against libraries that stand for theirs, and against real ones."""

from __future__ import annotations

import ctypes
import json
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_samples
import numpy as np
import pytest
from executor_samples import compiler
from fake_driver import FakeDriver

from fusec.cli import main
from fusec.diagnostics import DeviceError, InputError
from fusec.runtime import load, open_artifact
from fusec.runtime.cuda import CudaDriver
from fusec.runtime.devices import check_code, choose_target
from fusec.runtime.driver import DeviceInfo, KernelLaunch, LaunchError, OutOfMemoryError
from fusec.runtime.errors import CodeError, TargetError
from fusec.runtime.hip import HipDriver
from fusec.runtime.native import NativeDriver

SOURCE = Path(__file__).parent / "driver_shim.cpp"
ARCH = "gfx950:sramecc+:xnack-"
MEMORY = 1 << 30


@dataclass(frozen=True)
class Shim:
    """A library that stands for a driver's.

    Attributes:
        kind: `hip` or `cuda`.
        path: of the library.
        target: that its device takes.
        library: the library itself, for what only tests call.
    """

    kind: str
    path: str
    target: str
    library: ctypes.CDLL

    def driver(self, index: int = 0) -> NativeDriver:
        """A driver over it."""
        return (HipDriver if self.kind == "hip" else CudaDriver)(index, self.path)

    def reset(self, devices: int = 2, memory: int = MEMORY) -> None:
        """Forget launches, and set what there is."""
        arch = ARCH if self.kind == "hip" else self.target
        self.library.shim_reset(devices, arch.encode(), ctypes.c_size_t(memory))

    @property
    def live(self) -> int:
        """Handles and memory that were not given back."""
        return int(self.library.shim_live())

    def launches(self) -> list[tuple[str, tuple[int, ...], bytes]]:
        """Name, geometry and argument block of each launch that was done."""
        found = []
        self.library.shim_launch.restype = ctypes.c_char_p
        for index in range(self.library.shim_launches()):
            sizes = (ctypes.c_uint32 * 7)()
            kernargs, size = ctypes.c_void_p(), ctypes.c_int()
            name = self.library.shim_launch(
                index, sizes, ctypes.byref(kernargs), ctypes.byref(size)
            )
            block = ctypes.string_at(kernargs, size.value)
            found.append((name.decode(), tuple(sizes), block))
        return found


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    folder = tmp_path_factory.mktemp("shims")

    def built(name: str, *defines: str) -> str:
        output = folder / name
        flags = ["-O1", "-shared", "-fPIC", "-std=c++17", *defines]
        command = [*compiler(), *flags, str(SOURCE), "-o", str(output)]
        subprocess.run(command, check=True, capture_output=True)
        return str(output)

    return built


@pytest.fixture(scope="module")
def shims(build: Callable[..., str]) -> dict[str, Shim]:
    hip, cuda = build("libhip.so"), build("libcuda.so", "-DCUDA")
    return {
        "hip": Shim("hip", hip, "gfx950", ctypes.CDLL(hip)),
        "cuda": Shim("cuda", cuda, "sm_90", ctypes.CDLL(cuda)),
    }


@pytest.fixture(params=["hip", "cuda"])
def shim(request: pytest.FixtureRequest, shims: dict[str, Shim]) -> Iterator[Shim]:
    shim = shims[request.param]
    shim.reset()
    yield shim
    assert shim.live == 0, "not everything was given back"


def launch_of(driver: NativeDriver, symbol: str, **changes: Any) -> KernelLaunch:
    code = gpu_samples.CODE["gfx950" if driver.kind == "hip" else "sm_90"]
    module = driver.load_module(memoryview(code), "kernels/x")
    fields: dict[str, Any] = {
        "function": driver.function(module, symbol, 0),
        "grid": (3, 2, 1),
        "block": (128, 1, 1),
        "shared_bytes": 96,
        "kernargs": bytes(range(40)),
        "arguments": ((0, 8), (8, 4)),
        "spans": ((0, 1 << 62),),
        "at": f"{symbol} of %node",
    }
    return KernelLaunch(**{**fields, **changes})


# --- calls ----------------------------------------------------------------------------------


def test_a_device_describes_itself(shim: Shim) -> None:
    driver = shim.driver(1)
    arch = ARCH if shim.kind == "hip" else "sm_90"
    assert driver.info() == DeviceInfo("Shim gfx950 GPU", arch, MEMORY, 1)
    assert driver.count == 2
    assert str(driver) == f"{shim.kind}:1"


def test_the_arch_is_found_in_every_layout_of_the_properties(build: Callable[..., str]) -> None:
    path = build("libold.so", "-DOLD_PROPERTIES")
    assert HipDriver(0, path).info().arch == ARCH


def test_an_arch_that_is_not_told(shims: dict[str, Shim]) -> None:
    shims["hip"].library.shim_reset(1, b"vega", ctypes.c_size_t(MEMORY))
    with pytest.raises(DeviceError, match="does not tell the architecture"):
        shims["hip"].driver()


def test_copies_and_fills(shim: Shim) -> None:
    driver = shim.driver()
    stream = driver.stream()
    source, target = driver.host_array(5000), driver.host_array(5000)
    source[:] = np.random.default_rng(0).integers(0, 256, 5000)
    first, second = driver.allocate(5000, "a"), driver.allocate(9000, "b")
    driver.upload(first, source, stream)
    driver.copy(second + 1000, first, 5000, stream)
    driver.fill(second + 1003, 7, 2, stream)
    driver.download(target, second + 1000, stream)
    driver.synchronize(stream)
    expected = source.copy()
    expected[3:5] = 7
    np.testing.assert_array_equal(target, expected)
    driver.free(first)
    driver.close()


def test_pinned_memory_goes_with_its_array(shim: Shim) -> None:
    driver = shim.driver()
    array = driver.host_array(100)
    part = array[10:20]
    del array
    assert shim.live > 0
    before = shim.live
    del part
    assert shim.live == before - 1
    driver.close()


def test_a_launch_arrives_as_it_was_given(shim: Shim) -> None:
    driver = shim.driver()
    launch = launch_of(driver, "sample_nothing")
    driver.launch(launch, driver.stream())
    assert shim.launches() == [("sample_nothing", (3, 2, 1, 128, 1, 1, 96), launch.kernargs)]
    driver.close()


def test_graphs_are_done_when_they_are_replayed(shim: Shim) -> None:
    driver = shim.driver()
    stream = driver.stream()
    launch = launch_of(driver, "sample_nothing")
    driver.begin_capture(stream)
    driver.launch(launch, stream)
    driver.launch(launch, stream)
    graph = driver.end_capture(stream)
    assert shim.launches() == []
    driver.replay(graph, stream)
    driver.replay(graph, stream)
    assert len(shim.launches()) == 4
    driver.free_graph(graph)
    driver.close()


def test_events(shim: Shim) -> None:
    driver = shim.driver()
    stream = driver.stream()
    begin, end = driver.event(), driver.event()
    driver.record(begin, stream)
    driver.record(end, stream)
    driver.wait(end)
    assert driver.elapsed_ms(begin, end) == 0.25
    driver.close()


def test_a_thread_that_comes_later_finds_the_device(shim: Shim) -> None:
    driver = shim.driver()
    stream = driver.stream()
    launch = launch_of(driver, "sample_nothing")
    failed: list[BaseException] = []

    def work() -> None:
        try:
            driver.launch(launch, stream)
            driver.free(driver.allocate(64, "x"))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed
    driver.close()


def test_shared_memory_is_asked_for(shims: dict[str, Shim]) -> None:
    shim = shims["cuda"]
    shim.reset()
    driver = shim.driver()
    module = driver.load_module(memoryview(gpu_samples.CODE["sm_90"]), "kernels/x")
    driver.function(module, "sample_add", 48 << 10)
    assert shim.library.shim_shared_limit() == 0
    driver.function(module, "sample_add", 200 << 10)
    assert shim.library.shim_shared_limit() == 200 << 10
    with pytest.raises(CodeError, match="needs 262144 bytes of shared memory, but the device has"):
        driver.function(module, "sample_add", 256 << 10)
    driver.close()


# --- what goes wrong ------------------------------------------------------------------------


def test_no_device(shim: Shim) -> None:
    shim.reset(devices=0)
    with pytest.raises(DeviceError, match=f"there is no device `{shim.kind}:0`.*none") as caught:
        shim.driver()
    assert caught.value.exit_code == 6
    shim.reset(devices=2)
    found = f"only `{shim.kind}:0`, `{shim.kind}:1`"
    with pytest.raises(DeviceError, match=f"there is no device `{shim.kind}:2`.*{found}"):
        shim.driver(2)


def test_no_library(shim: Shim) -> None:
    kind = type(shim.driver())
    with pytest.raises(DeviceError, match=f"no driver for `{shim.kind}:3`: `libnone.so`") as caught:
        kind(3, "libnone.so")
    assert caught.value.exit_code == 6
    assert "libnone.so" in caught.value.detail[0]


def test_a_library_that_is_too_old(shims: dict[str, Shim]) -> None:
    with pytest.raises(DeviceError, match=r"has no `cuInit`: it is too old"):
        CudaDriver(0, shims["hip"].path)


def test_out_of_memory_says_what_for(shim: Shim) -> None:
    driver = shim.driver()
    driver.allocate(MEMORY // 4, "a")
    message = (
        f"`{shim.kind}:0` has not enough memory for the 3 weights: 2.0 GiB are needed, "
        "0.8 GiB of 1.0 GiB are free"
    )
    with pytest.raises(OutOfMemoryError) as caught:
        driver.allocate(2 * MEMORY, "the 3 weights")
    assert str(caught.value) == message
    assert caught.value.exit_code == 6
    driver.close()


def test_a_failed_launch_names_the_kernel_and_its_arguments(shim: Shim) -> None:
    driver = shim.driver()
    shim.library.shim_fail(b"sample_add")
    launch = launch_of(driver, "sample_add", kernargs=struct.pack("<qi4x", 0x7F00, -5))
    with pytest.raises(
        LaunchError, match=r"`sample_add of %node` could not be .*\(719\)"
    ) as caught:
        driver.launch(launch, driver.stream())
    assert caught.value.detail == (
        "grid 3 x 2 x 1, block 128 x 1 x 1, 96 bytes of shared memory",
        "addresses 0x7f00; numbers -5",
    )
    assert caught.value.exit_code == 5
    driver.close()


def test_code_that_the_driver_refuses(shim: Shim) -> None:
    driver = shim.driver()
    with pytest.raises(CodeError, match=r"refuses the code: \w+ \(200\)") as caught:
        driver.load_module(memoryview(b"no code at all"), "kernels/x")
    assert caught.value.at == "kernels/x"
    module = driver.load_module(memoryview(gpu_samples.CODE["sm_90"]), "kernels/x")
    with pytest.raises(CodeError, match="the code has no kernel `other`"):
        driver.function(module, "other", 0)
    driver.close()


# --- whole programs -------------------------------------------------------------------------


def test_a_program_runs_just_as_on_the_fake_driver(shim: Shim, tmp_path: Path) -> None:
    path = gpu_samples.embedding(tmp_path, shim.target)
    fake = FakeDriver(gpu_samples.KERNELS, arch=shim.target)
    driver = shim.driver()
    with load(path, driver=driver) as model, load(path, driver=fake) as other:
        for seed, (batch, seq) in enumerate([(3, 7), (3, 7), (3, 7), (8, 64), (3, 7), (1, 1)]):
            ids = np.random.default_rng(seed).integers(0, 11, (batch, seq))
            hidden = model(input_ids=ids)["hidden"]
            np.testing.assert_array_equal(hidden, 4 * gpu_samples.TABLE[ids])
            np.testing.assert_array_equal(hidden, other(input_ids=ids)["hidden"])
        with pytest.raises(InputError, match="index -3 is out of range: it must be less than 11"):
            model(input_ids=[[1, -3]])
        _, times = model.profile({"input_ids": [[1]]})
        assert [time.seconds for time in times] == [0.00025] * 3
    driver.close()


def test_argument_blocks_are_those_of_the_fake_driver(shim: Shim, tmp_path: Path) -> None:
    """Addresses differ, so they are compared as places in allocations, which come in one order."""
    path = gpu_samples.embedding(tmp_path, shim.target)
    fake = FakeDriver(gpu_samples.KERNELS, arch=shim.target)
    driver = shim.driver()
    bases: list[int] = []
    allocate = driver.allocate

    def recorded(size: int, purpose: str) -> int:
        bases.append(allocate(size, purpose))
        return bases[-1]

    driver.allocate = recorded  # type: ignore[method-assign]
    with load(path, driver=driver) as model, load(path, driver=fake) as other:
        for _ in range(3):
            model(input_ids=[[1, 2, 3]])
            other(input_ids=[[1, 2, 3]])
        launched = shim.launches()
        assert len(launched) == len(fake.launches) == 9
        for (name, sizes, block), launch in zip(launched, fake.launches, strict=True):
            assert name == fake.functions[launch.function - 1][1]
            assert sizes == (*launch.grid, *launch.block, launch.shared_bytes)
            here, there = bytearray(block), bytearray(launch.kernargs)
            for offset, size in launch.arguments[: launch.operands]:
                values = (
                    int.from_bytes(block[offset : offset + size], "little"),
                    int.from_bytes(launch.kernargs[offset : offset + size], "little"),
                )
                number, place = fake.located(values[1])
                assert values[0] - bases[number] == place
                here[offset : offset + size] = there[offset : offset + size] = bytes(size)
            assert here == there
    driver.close()


def test_loading_opens_and_closes_the_driver(
    shim: Shim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(shim.driver()), "libraries", (shim.path,))
    path = gpu_samples.embedding(tmp_path, shim.target)
    with load(path, f"{shim.kind}:1") as model:
        assert model(input_ids=[[2]])["hidden"].tolist() == [[[40, 44, 48, 52, 56]]]
        assert repr(model).startswith(f"<Model on {shim.target}")
        assert model.threads is None
    assert shim.live == 0
    code = gpu_samples.CODE[shim.target][:4] + b"\0" * 100
    bad = gpu_samples.embedding(tmp_path, shim.target, code=code, name="bad")
    with pytest.raises(CodeError, match="is not for a device such as"):
        load(bad, f"{shim.kind}:0")


def test_doctor_lists_devices(
    shim: Shim, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(type(shim.driver()), "libraries", (shim.path,))
    with pytest.raises(SystemExit):
        main(("doctor", "--json"))
    findings = {row["what"]: row for row in json.loads(capsys.readouterr().out)["findings"]}
    arch = ARCH if shim.kind == "hip" else "sm_90"
    for index in range(2):
        assert findings[f"{shim.kind}:{index}"]["found"] == f"Shim gfx950 GPU, {arch}, 1 GiB"
    shim.reset(devices=0)
    with pytest.raises(SystemExit):
        main(("doctor",))
    assert f"there is no device `{shim.kind}:0`" in capsys.readouterr().out


# --- architectures --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "arch", "message"),
    [
        (0x4F, "gfx950:sramecc+:xnack-", None),
        (0x4F | 0x500, "gfx950:sramecc+:xnack-", None),
        (0x4F | 0x200, "gfx950:sramecc+:xnack-", None),
        (0x4F | 0xC00, "gfx950", None),
        (
            0x4F | 0x300,
            "gfx950:sramecc+:xnack-",
            "for `gfx950:xnack+`, but this device is `gfx950:sramecc",
        ),
        (0x4F | 0xA00, "gfx950:sramecc+:xnack-", "for `gfx950:sramecc-:xnack-`, but"),
        (0x4C, "gfx950:sramecc+:xnack-", "for `gfx942`, but this device is `gfx950:sramecc"),
        (0x01, "gfx950", "for `machine 0x1`, but"),
    ],
)
def test_code_is_held_against_the_device(flags: int, arch: str, message: str | None) -> None:
    code = memoryview(gpu_samples.elf(gpu_samples.AMD, flags))
    info = DeviceInfo("AMD Instinct", arch, 1)
    if message is None:
        check_code(code, info, "x.fusec")
        return
    with pytest.raises(TargetError, match=re.escape(message)) as caught:
        check_code(code, info, "x.fusec")
    assert caught.value.exit_code == 5


def test_what_is_no_code_for_the_device() -> None:
    info = DeviceInfo("NVIDIA", "sm_90", 1)
    for code in (b"", b"ELF" * 40, gpu_samples.CODE["gfx950"]):
        with pytest.raises(CodeError, match=r"not an ELF file|not for a device such as `sm_90`"):
            check_code(memoryview(code), info, "x.fusec")
    check_code(memoryview(gpu_samples.CODE["sm_90"]), info, "x.fusec")


def test_another_arch_is_refused_before_code_is_loaded(tmp_path: Path) -> None:
    path = gpu_samples.embedding(tmp_path, "gfx950")
    fake = FakeDriver({}, kind="hip", arch="gfx942:sramecc+:xnack-")
    with pytest.raises(TargetError) as caught:
        load(path, driver=fake)
    assert str(caught.value) == (
        "the artifact was compiled for `gfx950`, but this device is `gfx942:sramecc+:xnack-`"
    )
    assert caught.value.hint == "compile it with `--target gfx942`"
    with pytest.raises(TargetError) as caught:
        load(path, driver=FakeDriver({}, kind="hip", arch="gfx1100"))
    assert caught.value.hint == "fusec compiles for `gfx950`, `gfx942`, `sm_90`"
    assert caught.value.exit_code == 5
    assert not fake.modules
    sections = open_artifact(path).manifest.targets
    assert choose_target(sections, DeviceInfo("x", "gfx950:xnack+", 1), "x") is sections[0]


# --- the real library -----------------------------------------------------------------------


def hip_without_a_device() -> str:
    """The message of the real driver of HIP on a machine that has the library and no device."""
    code = (
        "from fusec.runtime.hip import HipDriver\n"
        "from fusec.diagnostics import DeviceError\n"
        "try:\n"
        "    HipDriver()\n"
        "    print('a device')\n"
        "except DeviceError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    if "cannot be loaded" in done.stdout:
        pytest.skip("libamdhip64 is not installed")
    if "a device" in done.stdout:
        pytest.skip("there is an AMD GPU")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_real_hip_library_has_every_function_and_no_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hip_without_a_device() == (
        "there is no device `hip:0`: the driver is installed, but finds none\n"
    )
    path = gpu_samples.embedding(tmp_path, "gfx950")
    rows = tmp_path / "rows.npz"
    np.savez(rows, input_ids=np.ones((2, 3), np.int64))
    with pytest.raises(SystemExit) as caught:
        main(("run", str(path), "--input", str(rows), "--device", "hip:0"))
    assert caught.value.code == 6
    assert "error: there is no device `hip:0`" in capsys.readouterr().err
