"""Code objects for gfx950, written by hand."""

from __future__ import annotations

from fusec.link.amdgpu_tools import assemble
from fusec.link.assembly import read_assembly
from fusec.link.gpu_kernel import CompiledCode

ASSEMBLY = """
\t.amdgcn_target "amdgcn-amd-amdhsa--{arch}"
\t.amdhsa_code_object_version 6
\t.text
\t.protected {symbol}
\t.globl {symbol}
\t.p2align 8
\t.type {symbol},@function
{symbol}:
{body}
\ts_endpgm
\t.size {symbol}, .-{symbol}
\t.section .rodata,"a",@progbits
\t.p2align 6, 0x0
\t.amdhsa_kernel {symbol}
\t\t.amdhsa_kernarg_size {kernarg_bytes}
\t\t.amdhsa_user_sgpr_kernarg_segment_ptr 1
\t\t.amdhsa_next_free_vgpr 8
\t\t.amdhsa_next_free_sgpr 8
\t\t.amdhsa_accum_offset 8
\t.end_amdhsa_kernel
\t.amdgpu_metadata
---
amdhsa.kernels:
  - .agpr_count: 0
    .args:
{arguments}
    .group_segment_fixed_size: 0
    .kernarg_segment_align: 8
    .kernarg_segment_size: {kernarg_bytes}
    .max_flat_workgroup_size: 256
    .name: {symbol}
    .private_segment_fixed_size: 0
    .sgpr_count: 14
    .sgpr_spill_count: {spills}
    .symbol: {symbol}.kd
    .vgpr_count: 8
    .vgpr_spill_count: 0
    .wavefront_size: 64
amdhsa.target: amdgcn-amd-amdhsa--{arch}
amdhsa.version:
  - 1
  - 2
...
\t.end_amdgpu_metadata
"""


def hand_written(
    symbol: str, body: str, sizes: tuple[int, ...], arch: str = "gfx950", spills: int = 0
) -> CompiledCode:
    """A kernel of these instructions that takes pointers (8 bytes) and then numbers (4 bytes).

    It says of itself that it keeps `spills` scalar registers in lanes of vector registers.
    """
    at, arguments = 0, []
    for size in sizes:
        kind = "global_buffer" if size == 8 else "by_value"
        space = ["        .address_space: global"] if size == 8 else []
        arguments += [f"      - .offset: {at}", f"        .size: {size}", *space]
        arguments += [f"        .value_kind: {kind}"]
        at += size
    text = ASSEMBLY.format(
        arch=arch,
        symbol=symbol,
        body="\n".join(f"\t{line}" for line in body.splitlines()),
        arguments="\n".join(arguments),
        kernarg_bytes=at,
        spills=spills,
    )
    code, machine = assemble(text, arch), read_assembly(text, arch)
    return CompiledCode(symbol, code, "hsaco", 256, 0, machine)
