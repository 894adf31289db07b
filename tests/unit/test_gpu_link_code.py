"""What is read from machine code: assembly, and how many waves fit."""

from __future__ import annotations

import pytest

from fusec.cli.inspect import kernels_text
from fusec.link.assembly import read_assembly, read_ptx
from fusec.link.occupancy import waves_per_unit
from fusec.link.triton_build import forbid_packed_f32
from fusec.target import target_named


@pytest.mark.parametrize(
    ("operands", "goes_wrong"),
    [
        ("op_sel:[0,1,0]", True),
        ("op_sel:[1,0,0]", True),
        ("op_sel:[0,1,0] op_sel_hi:[1,1,1]", True),
        ("op_sel:[0,1,0] op_sel_hi:[1,0,1]", False),
        ("op_sel_hi:[1,0,1]", False),
        ("", False),
    ],
)
def test_packed_products_that_broadcast_a_high_half(operands: str, goes_wrong: bool) -> None:
    line = f"\tv_pk_fma_f32 v[0:1], v[2:3], v[4:5], v[0:1] {operands} ; a comment\n"
    assert bool(read_assembly(line, "gfx950").forbidden) == goes_wrong
    assert not read_assembly(line, "gfx942").forbidden
    assert not read_assembly(line.replace("v_pk_fma", "v_pk_mul"), "gfx950").forbidden


@pytest.mark.parametrize(
    ("instruction", "load", "store"),
    [
        ("global_load_dwordx4 v[0:3], v4, s[0:1]", 16, 0),
        ("buffer_load_dwordx2 v[0:1], v2, s[0:3], 0 offen", 8, 0),
        ("global_load_lds_dwordx4 v[0:1], off", 16, 0),
        ("global_load_ubyte v0, v1, s[0:1]", 1, 0),
        ("global_store_short_d16_hi v0, v1, s[0:1]", 0, 2),
        ("s_load_dwordx16 s[0:15], s[0:1], 0x0", 0, 0),
        ("ds_read_b128 v[0:3], v4", 0, 0),
    ],
)
def test_widths_of_accesses(instruction: str, load: int, store: int) -> None:
    machine = read_assembly(f"\t{instruction}\n", "gfx950")
    assert (machine.widest_load, machine.widest_store) == (load, store)


def test_matrix_instructions() -> None:
    text = "\tv_mfma_scale_f32_32x32x64_f8f6f4 a[0:15], v[0:3]\n\tv_mfma_f32_16x16x32_bf16 a[0:3]\n"
    names = ("v_mfma_f32_16x16x32_bf16", "v_mfma_scale_f32_32x32x64_f8f6f4")
    assert read_assembly(text * 2, "gfx950").mfma == names


def test_packed_instructions_are_forbidden_in_every_function() -> None:
    text = """
define amdgpu_kernel void @f(ptr %0, float %1) local_unnamed_addr #1 !dbg !3 {
define internal float @g(float %0) #2 {
declare float @h(float) #3
attributes #1 = { nounwind "uniform-work-group-size" }
attributes #2 = { nounwind }
attributes #3 = { nounwind }
attributes #11 = { nounwind }
"""
    changed = forbid_packed_f32(text).splitlines()
    said = [line for line in changed if "-packed-fp32-ops" in line]
    assert [line.split(" = ")[0] for line in said] == ["attributes #1", "attributes #2"]
    assert said[0].endswith('"-packed-fp32-ops" nounwind "uniform-work-group-size" }')


def test_ptx() -> None:
    text = """
    @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
    ld.global.L1::evict_first.b16 { %rs1 }, [ %rd2 ];
    st.global.v2.b32 [ %rd3 ], { %r1, %r2 };
    wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%f1}, %rd1;
    """
    machine = read_ptx(text)
    assert (machine.widest_load, machine.widest_store) == (16, 8)
    assert machine.mfma == ("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16",)
    copy = "cp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x8;"
    assert read_ptx(copy).widest_load == 8


@pytest.mark.parametrize(
    ("arch", "vgpr", "sgpr", "lds", "threads", "waves"),
    [
        ("gfx942", 64, 32, 0, 256, 32),
        ("gfx942", 65, 32, 0, 256, 28),
        ("gfx942", 128, 32, 0, 256, 16),
        ("gfx942", 256, 32, 0, 256, 8),
        ("gfx942", 512, 32, 0, 256, 4),
        ("gfx942", 32, 104, 0, 256, 28),
        ("gfx942", 32, 32, 32 << 10, 256, 8),
        ("gfx950", 32, 32, 32 << 10, 256, 16),
        ("gfx950", 32, 32, 80 << 10, 256, 8),
        ("gfx950", 32, 32, 16, 64, 32),
        ("gfx950", 32, 32, 0, 128, 32),
        ("gfx950", 32, 32, 0, 1024, 32),
        ("gfx950", 96, 32, 0, 1024, 16),
    ],
)
def test_occupancy(arch: str, vgpr: int, sgpr: int, lds: int, threads: int, waves: int) -> None:
    resources = {"vgpr": vgpr, "agpr": 0, "sgpr": sgpr, "lds_bytes": lds}
    assert waves_per_unit(resources, threads, target_named(arch)) == waves


def test_nothing_is_said_of_the_occupancy_of_an_nvidia_gpu() -> None:
    resources = {"vgpr": 32, "agpr": 0, "sgpr": 0, "lds_bytes": 0}
    assert waves_per_unit(resources, 128, target_named("sm_90")) == 0


def test_inspect_lists_what_is_known_of_a_kernel() -> None:
    kernel = {
        "name": "rms_norm.hip",
        "op": "rms_norm",
        "provider": "hip",
        "symbol": "norm_rows",
        "sha256": "",
        "bytes": 4096,
        "resources": {"vgpr": 24, "sgpr": 18, "lds_bytes": 16, "scratch_bytes": 0},
        "machine": {"threads": 256, "waves_per_unit": 32, "widest_load": 16, "mfma": ["v_mfma_x"]},
    }
    older = {**kernel, "name": "older"}
    del older["machine"]
    shown = kernels_text({"family": "amdgpu", "kernels": [kernel, older]}).splitlines()
    for words in (("VGPR", "LDS", "waves", "load", "MFMA"), ("24", "256", "32", "16", "v_mfma_x")):
        assert all(word in shown[words[0] != "VGPR"] for word in words)
    assert "older" in shown[2]
    assert "VGPR" not in kernels_text({"family": "cpu", "kernels": [kernel]})
