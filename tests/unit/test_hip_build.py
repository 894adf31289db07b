"""HIP kernels: compiled for AMD GPUs with no GPU, and the same source run on the host."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fusec.link.amdgpu_tools
import fusec.link.hip_build
from fusec.diagnostics import UnsupportedError
from fusec.emulator.host import library, run
from fusec.kernels.launch import HipSource
from fusec.link.amdgpu_tools import assemble
from fusec.link.code_object import read_code_object
from fusec.link.hip_build import build_hip, find_hip_compiler
from fusec.target import target_named

FILE = str(Path(__file__).with_name("scale_rows.hip"))
DTYPES = {"f32": 0, "bf16": 1, "f16": 2}
TORCH = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
FP8 = {False: torch.float8_e4m3fn, True: torch.float8_e4m3fnuz}
LIMIT = {False: 448.0, True: 240.0}
AMD = ("gfx950", "gfx942")


def source(function: str, signature: str, dtype: str = "bf16", threads: int = 256) -> HipSource:
    kinds = tuple((f"a{i}", kind) for i, kind in enumerate(signature.split()))
    return HipSource(FILE, function, kinds, (("FUSEC_DTYPE", DTYPES[dtype]),), threads)


def scale_rows(dtype: str = "bf16", threads: int = 256) -> HipSource:
    return source("scale_rows", "ptr ptr ptr ptr i64 i64 f32", dtype, threads)


@pytest.mark.parametrize("name", AMD)
def test_a_kernel_is_compiled_without_a_gpu(name: str) -> None:
    target = target_named(name)
    built = build_hip(scale_rows(), target)
    read = read_code_object(built.code)
    assert read.arch == name
    kernel = read.kernels["scale_rows"]
    assert kernel.threads == 256
    assert [argument.size for argument in kernel.arguments] == [8, 8, 8, 8, 8, 8, 4]
    assert kernel.resources["lds_bytes"] == 2 * 4 * 4
    assert not kernel.resources["scratch_bytes"]
    assert built.machine.widest_load == 16
    assert built.machine.forbidden == ()


@pytest.mark.parametrize("name", AMD)
def test_the_same_source_gives_the_same_bytes(name: str) -> None:
    target = target_named(name)
    first = build_hip(scale_rows(), target)
    assert build_hip(scale_rows(), target).code == first.code
    for path in (Path(__file__).parents[2], Path.home(), Path(sys.prefix)):
        assert str(path).encode() not in first.code


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [8, 1, 77, 520, 4096])
@pytest.mark.parametrize("fnuz", [False, True])
def test_the_source_runs_on_the_host(dtype: str, length: int, fnuz: bool) -> None:
    rows, stride, guard = 3, length + 16 - length % 8, 32
    x = (torch.randn(rows, stride) * 3).to(TORCH[dtype])
    y = torch.full((rows * length + guard,), torch.nan, dtype=TORCH[dtype])
    quantised = torch.full((rows * length + guard,), 0x80, dtype=torch.uint8)
    scales = torch.full((rows + guard,), torch.nan)
    pointers = [tensor.data_ptr() for tensor in (x, y, quantised, scales)]
    arguments = [*pointers, stride, length, LIMIT[fnuz]]
    run(scale_rows(dtype, 128), arguments, [rows], fnuz=fnuz)
    wide = x[:, :length].double()
    largest = wide.abs().amax(1, keepdim=True)
    assert y[rows * length :].isnan().all() and scales[rows:].isnan().all()
    assert (quantised[rows * length :] == 0x80).all()
    got = y[: rows * length].reshape(rows, length).double()
    wanted = wide / wide.abs().sum(1, keepdim=True)
    torch.testing.assert_close(got, wanted, rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(scales[:rows].double(), largest[:, 0] / LIMIT[fnuz])
    back = quantised[: rows * length].view(FP8[fnuz]).reshape(rows, length).double()
    torch.testing.assert_close(back, wide / largest * LIMIT[fnuz], rtol=2**-4, atol=2**-9)


def test_exchanges_between_lanes_on_the_host() -> None:
    threads = 128
    x = torch.randn(threads)
    y = torch.full((14, threads), torch.nan)
    run(
        source("exchanges", "ptr ptr", threads=threads),
        [x.data_ptr(), y.data_ptr()],
        [1],
        fnuz=False,
    )
    lanes = torch.arange(threads)

    def neighbours(count: int) -> torch.Tensor:
        return x.reshape(-1, count)

    def spread(values: torch.Tensor, count: int) -> torch.Tensor:
        return values.repeat_interleave(count)

    wanted = [x[lanes ^ mask] for mask in (1, 2, 7, 15, 16, 32)]
    wanted += [spread(neighbours(count).sum(1), count) for count in (1, 4, 8, 16)]
    wanted += [spread(neighbours(32).amax(1), 32), spread(neighbours(64).sum(1), 64)]
    wanted += [x.sum().expand(threads), spread(neighbours(64)[:, 5], 64)]
    torch.testing.assert_close(y, torch.stack(wanted))


@pytest.mark.parametrize("fnuz", [False, True])
def test_fp8_on_the_host(fnuz: bool) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    values = torch.full((256,), torch.nan)
    decoded = codes.view(FP8[fnuz]).float()
    halfway = (decoded[:-1] + decoded[1:]) / 2
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -0.0, 1e-30, -1e-30])
    numbers = torch.cat([halfway, special, torch.randn(256 - 255 + 256)])[:256].contiguous()
    numbers[-7:] = special
    converted = torch.zeros(256, dtype=torch.uint8)
    pointers = [tensor.data_ptr() for tensor in (codes, values, numbers, converted)]
    conversions = source("conversions", "ptr ptr ptr ptr f32", threads=64)
    run(conversions, [*pointers, LIMIT[fnuz]], [1], fnuz=fnuz)
    torch.testing.assert_close(values, decoded, rtol=0, atol=0, equal_nan=True)
    wanted = numbers.clamp(-LIMIT[fnuz], LIMIT[fnuz]).to(FP8[fnuz])
    torch.testing.assert_close(
        converted.view(FP8[fnuz]).float(), wanted.float(), rtol=0, atol=0, equal_nan=True
    )


def test_mathematics_on_the_host() -> None:
    x = torch.randn(64) * 3
    y = torch.full((11, 64), torch.nan)
    run(source("mathematics", "ptr ptr", threads=64), [x.data_ptr(), y.data_ptr()], [1], fnuz=False)
    mantissa, exponent = torch.frexp(x)
    wanted = [x.exp(), x.erf(), x.tanh(), x.abs().rsqrt(), x.ceil(), 1 / x, mantissa, exponent]
    torch.testing.assert_close(y, torch.stack([*wanted, x * 8, x.clamp(-1, 1), x.exp2()]))


@pytest.mark.parametrize("name", AMD)
@pytest.mark.parametrize("function", ["exchanges", "conversions", "mathematics"])
def test_what_the_header_offers_compiles(name: str, function: str) -> None:
    signature = {"conversions": "ptr ptr ptr ptr f32"}.get(function, "ptr ptr")
    built = build_hip(source(function, signature, threads=64), target_named(name))
    assert function in read_code_object(built.code).kernels


def test_lanes_that_do_not_meet_stop_the_host() -> None:
    kernel = source("diverges", "ptr ptr", threads=64)
    library(kernel, False)
    script = (
        "import torch; from test_hip_build import run, source; x = torch.randn(64);"
        "run(source('diverges', 'ptr ptr', threads=64), [x.data_ptr()] * 2, [1], fnuz=False)"
    )
    folder = Path(__file__).parent
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path[:0] = {[str(folder), str(folder.parent / 'kernels')]}; {script}",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "lanes of a wave do not meet" in done.stderr


def test_a_source_that_does_not_compile_is_quoted() -> None:
    broken = HipSource("scale_rows/not_there.hip", "f", (), (), 64)
    with pytest.raises(UnsupportedError, match="does not compile") as caught:
        build_hip(broken, target_named("gfx950"))
    assert any("not_there" in line for line in caught.value.detail)


def test_no_compiler_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusec.link.hip_build, "_system_compiler", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="need clang") as caught:
        find_hip_compiler.__wrapped__()
    assert caught.value.hint is not None and "pip install" in caught.value.hint


def test_an_old_clang_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusec.link.hip_build, "_output", lambda command: "clang version 18.1.6")
    with pytest.raises(UnsupportedError, match="need clang"):
        find_hip_compiler.__wrapped__()


def test_a_triton_that_has_changed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusec.link.amdgpu_tools, "_ASSEMBLERS", (("triton.compiler", "nothing"),))
    with pytest.raises(UnsupportedError, match="has no `assemble_amdgcn`"):
        assemble("", "gfx950")


def test_assembly_that_is_wrong_is_an_error() -> None:
    with pytest.raises(UnsupportedError, match="refuses code"):
        assemble("v_no_such_instruction v0, v1\n", "gfx950")
