"""The emulated device: what it computes, and what it refuses."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_block import WIDTH, Block, export_block

import fusec
from fusec.cli import main
from fusec.diagnostics import InternalError
from fusec.emulator import Emulator
from fusec.emulator.memory import Memory
from fusec.kernels.launch import HipSource, TritonSource
from fusec.link.gpu_checks import GpuSource, fitted
from fusec.link.gpu_kernel import GpuKernel
from fusec.link.hip_build import build_hip
from fusec.link.triton_build import build_triton
from fusec.runtime.driver import KernelLaunch, LaunchError
from fusec.runtime.errors import CodeError, TargetError
from fusec.target import target_named

ADD = '''
import triton
import triton.language as tl


@triton.jit
def twice(x):
    """A function of the module."""
    return x + x


@triton.jit
def add_twice(p_x, p_y, p_out, count, factor, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    x = tl.load(p_x + i, mask, other=0.0).to(tl.float32)
    y = tl.load(p_y + i, mask, other=0.0)
    tl.store(p_out + i, twice(x + y * factor).to(tl.bfloat16), mask)
'''


def add_source(text: str = ADD, warps: int = 4) -> TritonSource:
    signature = (
        ("p_x", "*bf16"),
        ("p_y", "*fp32"),
        ("p_out", "*bf16"),
        ("count", "i64"),
        ("factor", "fp32"),
    )
    return TritonSource(
        module="",
        function="add_twice",
        signature=signature,
        constants=(("BLOCK", 64),),
        divisible=("p_x", "p_y", "p_out"),
        warps=warps,
        text=text,
    )


@cache
def built(source: GpuSource, target_name: str) -> GpuKernel:
    target = target_named(target_name)
    build = build_hip if isinstance(source, HipSource) else build_triton
    return fitted(build(source, target), source, target)  # type: ignore[arg-type]


class Setting:
    """An emulated device with one kernel and its buffers."""

    def __init__(self, source: GpuSource, target: str, buffers: list[NDArray[np.generic]]) -> None:
        self.source = source
        self.code = built(source, target)
        entry = f"kernels/{target}/{self.code.sha256}.{self.code.suffix}"
        self.device = Emulator(target, {entry: source})
        module = self.device.load_module(memoryview(self.code.code), entry)
        shared = self.code.shared_bytes
        self.function = self.device.function(module, source.function, shared)
        self.sizes = [buffer.nbytes for buffer in buffers]
        self.addresses = [self.device.allocate(size, "a test") for size in self.sizes]
        for address, buffer in zip(self.addresses, buffers, strict=True):
            self.device.upload(address, buffer.view(np.uint8), 0)

    def launch(self, params: list[int | float], groups: int) -> KernelLaunch:
        block = bytearray(self.code.kernarg_bytes)
        values = [*self.addresses, *params]
        for (offset, size), value in zip(self.code.arguments, values, strict=True):
            packed = struct.pack("<q", value) if isinstance(value, int) else b""
            block[offset : offset + size] = packed[:size] or struct.pack("<f", value)
        return KernelLaunch(
            function=self.function,
            grid=(groups, 1, 1),
            block=(self.code.threads, 1, 1),
            shared_bytes=self.code.shared_bytes,
            kernargs=bytes(block),
            arguments=self.code.arguments,
            spans=tuple(
                (address, address + size)
                for address, size in zip(self.addresses, self.sizes, strict=True)
            ),
            at="a test",
        )

    def read(self, index: int) -> NDArray[np.uint8]:
        data = np.zeros(self.sizes[index], np.uint8)
        self.device.download(data, self.addresses[index], 0)
        return data


def bf16(values: NDArray[np.floating]) -> NDArray[np.uint16]:
    import torch

    return torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()


def adding(count: int = 100, target: str = "gfx950", text: str = ADD, warps: int = 4) -> Setting:
    x = bf16(np.linspace(-3, 3, count, dtype=np.float32))
    y = np.linspace(0, 1, count, dtype=np.float32)
    return Setting(add_source(text, warps), target, [x, y, np.zeros(count, np.uint16)])


def widened(bits: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("target", ["gfx950", "gfx942", "sm_90"])
def test_a_generated_kernel_is_run(target: str) -> None:
    setting = adding(target=target)
    setting.device.launch(setting.launch([100, 1.7], 2), 0)
    x, y = widened(setting.read(0)), np.linspace(0, 1, 100, dtype=np.float32)
    wanted = bf16(2 * (x + y * np.float32(1.7)))
    np.testing.assert_array_equal(setting.read(2).view(np.uint16), wanted)
    assert setting.device.info().arch == target


def test_what_is_not_written_is_not_a_number() -> None:
    setting = adding()
    (address,) = {setting.device.allocate(10, "a test")}
    got = np.zeros(10, np.uint8)
    setting.device.download(got, address, 0)
    assert (got == 0xFF).all()


def scale_rows(length: int) -> Setting:
    file = str(Path(__file__).with_name("scale_rows.hip"))
    kinds = tuple((f"a{i}", kind) for i, kind in enumerate("ptr ptr ptr ptr i64 i64 f32".split()))
    source = HipSource(file, "scale_rows", kinds, (("FUSEC_DTYPE", 0),), 128)
    x = np.random.default_rng(0).standard_normal((3, length)).astype(np.float32)
    codes, scales = np.zeros(3 * length, np.uint8), np.zeros(3, np.float32)
    return Setting(source, "gfx950", [x, np.zeros_like(x), codes, scales])


def test_a_hip_kernel_is_run() -> None:
    setting = scale_rows(72)
    setting.device.launch(setting.launch([72, 72, 448.0], 3), 0)
    x, y = (setting.read(index).view(np.float32).reshape(3, 72) for index in (0, 1))
    np.testing.assert_allclose(y, x / np.abs(x).sum(1, keepdims=True), rtol=1e-5)


def refused(setting: Setting, launch: KernelLaunch, *said: str) -> None:
    with pytest.raises(LaunchError) as caught:
        setting.device.launch(launch, 0)
    shown = caught.value.render()
    assert "a test" in shown
    for words in said:
        assert words in shown


def test_reading_past_a_buffer_is_refused() -> None:
    setting = adding()
    refused(setting, setting.launch([101, 1.0], 2), "reads bytes", "`p_x`, which has 200")


def test_reading_past_a_buffer_into_the_next_is_refused() -> None:
    """Buffers of an arena follow each other."""
    setting = adding()
    launch = setting.launch([101, 1.0], 2)
    begin = setting.device.allocate(4096, "a test")
    spans = ((begin, begin + 200), (begin + 256, begin + 656), (begin + 768, begin + 968))
    places = zip(launch.arguments, spans, strict=False)
    block = bytearray(launch.kernargs)
    for (offset, _), (address, _) in places:
        block[offset : offset + 8] = struct.pack("<q", address)
    moved = replace(launch, kernargs=bytes(block), spans=spans)
    refused(setting, moved, "reads bytes", "`p_x`, which has 200")


WRITES_BEFORE = ADD.replace("tl.store(p_out + i,", "tl.store(p_out + i - 1,")
READS_NUMBERS = ADD.replace(
    "tl.load(p_y + i,", "tl.load((i + count).to(tl.pointer_type(tl.float32)),"
)


@pytest.mark.parametrize(
    ("text", "said"),
    [(WRITES_BEFORE, "writes bytes -2 to"), (READS_NUMBERS, "which no operand points to")],
)
def test_wild_accesses_are_refused(text: str, said: str) -> None:
    setting = adding(text=text)
    refused(setting, setting.launch([100, 1.0], 2), said, "in program")


READS_BACK = ADD + "    tl.store(p_out + i, tl.load(p_out + i, mask), mask)\n"
READS_OTHERS = ADD.replace("p_x + i, mask", "p_out + 99 - i, mask")
WRITES_OTHERS = ADD.replace("tl.store(p_out + i,", "tl.store(p_out + i % 64,")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (READS_OTHERS, "what another program"),
        (WRITES_OTHERS, "what another program also writes"),
        (READS_BACK, "reads in the buffer of `p_out` what it writes"),
    ],
)
def test_programs_must_not_depend_on_each_other(text: str, said: str) -> None:
    setting = adding(text=text, warps=1)
    refused(setting, setting.launch([100, 1.0], 2), said, "in program")


def test_operands_may_share_memory_where_programs_do_not() -> None:
    """In place is fine; shifted by one it is a race."""
    setting = adding(warps=1)
    setting.addresses[2] = setting.addresses[0]
    launch = setting.launch([100, 1.0], 2)
    setting.device.launch(launch, 0)
    raw = setting.device.allocate(512, "a test") + 256
    block = bytearray(launch.kernargs)
    for index, address in ((0, raw), (2, raw - 32)):
        offset = launch.arguments[index][0]
        block[offset : offset + 8] = struct.pack("<q", address)
    spans = ((raw, raw + 200), launch.spans[1], (raw - 32, raw + 168))
    moved = replace(launch, kernargs=bytes(block), spans=spans)
    refused(setting, moved, "what another program")


def test_waves_that_share_elements_must_not_store_where_they_load() -> None:
    """64 elements are loaded by each of four waves, and stored by the first."""
    setting = adding()
    setting.addresses[2] = setting.addresses[0]
    refused(setting, setting.launch([100, 1.0], 2), "what it reads, 64 elements for 256 lanes")


def test_an_address_must_lie_in_its_buffer() -> None:
    setting = adding()
    launch = setting.launch([100, 1.0], 2)
    moved = tuple((begin + 16, end + 16) for begin, end in launch.spans)
    refused(setting, replace(launch, spans=moved), "outside of its buffer", "is not allocated")


def test_freed_memory_must_not_be_used() -> None:
    setting = adding()
    setting.device.free(setting.addresses[1])
    refused(setting, setting.launch([100, 1.0], 2), "the buffer of `p_y`", "is not allocated")


def test_what_was_compiled_as_aligned_is() -> None:
    setting = adding()
    launch = setting.launch([10, 1.0], 1)
    block = bytearray(launch.kernargs)
    offset = launch.arguments[0][0]
    block[offset] += 2
    refused(setting, replace(launch, kernargs=bytes(block)), "compiled as a multiple of 16")


Change = Callable[[KernelLaunch], KernelLaunch]

WRONG: dict[str, tuple[Change, str]] = {
    "no-groups": (lambda launch: replace(launch, grid=(0, 1, 1)), "0 groups along x"),
    "many-groups": (lambda launch: replace(launch, grid=(1, 65536, 1)), "65536 groups along y"),
    "lanes": (lambda launch: replace(launch, block=(64, 1, 1)), "a group has 64 lanes"),
    "shared": (lambda launch: replace(launch, shared_bytes=64), "64 bytes of shared memory"),
    "short": (lambda launch: replace(launch, kernargs=launch.kernargs[:-8]), "argument block has"),
    "fewer": (lambda launch: replace(launch, arguments=launch.arguments[:-1]), "4 arguments"),
    "moved": (
        lambda launch: replace(
            launch, arguments=(launch.arguments[1], launch.arguments[0], *launch.arguments[2:])
        ),
        "`p_x` is 8 bytes at 8; the code object takes 8 at 0",
    ),
    "operands": (lambda launch: replace(launch, spans=launch.spans[:2]), "it has 2 operands"),
}


@pytest.mark.parametrize("change", WRONG)
def test_launches_that_do_not_fit_are_refused(change: str) -> None:
    setting = adding()
    make, said = WRONG[change]
    refused(setting, make(setting.launch([100, 1.0], 2)), said)


def test_code_of_unknown_source_is_refused() -> None:
    code = built(add_source(), "gfx950")
    with pytest.raises(CodeError, match="is not known"):
        Emulator("gfx950", {}).load_module(memoryview(code.code), "kernels/x.hsaco")


def test_code_for_another_device_is_refused() -> None:
    code = built(add_source(), "gfx942")
    entry = f"kernels/gfx942/{code.sha256}.hsaco"
    with pytest.raises(CodeError, match="it is for `gfx942`"):
        Emulator("gfx950", {entry: add_source()}).load_module(memoryview(code.code), entry)


def test_a_symbol_that_is_not_there_is_refused() -> None:
    setting = adding()
    with pytest.raises(CodeError, match="no kernel `other`"):
        setting.device.function(0, "other", 0)
    with pytest.raises(CodeError, match="there are 163840"):
        setting.device.function(0, "add_twice", 1 << 20)


def test_copies_and_fills_stay_in_bounds() -> None:
    memory = Memory()
    address = memory.allocate(100)
    assert address % 256 == 0
    assert memory.holds(address + 10, address + 100)
    assert not memory.holds(address + 10, address + 101)
    with pytest.raises(InternalError, match="there are no 101 bytes"):
        memory.view(address, 101)
    memory.free(address)
    with pytest.raises(InternalError, match="no allocation"):
        memory.free(address)


def test_events_are_in_order() -> None:
    device = Emulator("gfx950", {})
    begin, end = device.event(), device.event()
    device.record(begin, 0)
    device.record(end, 0)
    assert device.elapsed_ms(begin, end) >= 0
    assert device.end_capture(device.stream()) is None


# --- whole programs -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of a small model, for two GPUs."""
    folder = tmp_path_factory.mktemp("block")
    source = export_block(folder / "block.pt2")
    made = fusec.compile(source, folder / "block.fusec", target=["gfx950", "sm_90"])
    return made.path


def rows(count: int) -> dict[str, Any]:
    rng = np.random.default_rng(count)
    names = ("x", "residual")
    return {name: rng.standard_normal((count, WIDTH)).astype(np.float32) for name in names}


def close(got: Any, given: dict[str, Any]) -> None:
    import torch

    with torch.no_grad():
        wanted = Block().eval()(*map(torch.from_numpy, given.values()))["y"].numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", ["gfx950", "sm_90"])
def test_a_model_is_run(block: Path, target: str) -> None:
    model = fusec.load(block, driver=Emulator.for_artifact(block, target))
    for count in (1, 37, 3):
        given = rows(count)
        close(model.run(dict(given))["y"], given)


@pytest.mark.parametrize("device", ["emulator", "emulator:sm_90"])
def test_the_command_line_runs_it(block: Path, device: str, tmp_path: Path) -> None:
    given = rows(5)
    np.savez(tmp_path / "in.npz", **given)
    places = ["--input", str(tmp_path / "in.npz"), "--output", str(tmp_path / "out.npz")]
    with pytest.raises(SystemExit) as done:
        main(("run", str(block), *places, "--device", device))
    assert done.value.code == 0
    close(np.load(tmp_path / "out.npz")["y"], given)


def test_a_target_that_is_not_there_is_refused(block: Path) -> None:
    with pytest.raises(TargetError, match="gfx942"):
        Emulator.for_artifact(block, "gfx942")


def test_source_that_has_changed_is_not_run() -> None:
    changed = ADD.replace("count, factor,", "count, factor, other,")
    setting = adding()
    setting.device._functions[0] = replace(setting.device._functions[0], source=add_source(changed))
    refused(setting, setting.launch([100, 1.0], 2), "compile the artifact again")
