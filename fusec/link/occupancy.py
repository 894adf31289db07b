"""How many waves of a kernel a compute unit holds at once.

The "CDNA 3" and "CDNA 4" instruction set architecture documents: a compute unit has four SIMDs; a
SIMD holds up to 8 waves and 512 vector registers for each lane, which AGPRs share and which are
given out 8 at a time; its scalar registers serve 8 waves of up to 100 each, and 7 of more.  Local
memory is given out in blocks of 512 bytes on gfx942 and of 1280 bytes on gfx950.  A compute unit
has barriers for 16 work groups of more than one wave.  LLVM's AMDGPU back end computes with the
same figures.
"""

from __future__ import annotations

from collections.abc import Mapping

from fusec.target import Target

SIMDS = 4
MOST_WAVES = 8
VECTOR_REGISTERS, VECTOR_GRANULE = 512, 8
SCALAR_REGISTERS = 100
LDS_GRANULE = {"gfx942": 512, "gfx950": 1280}
MOST_GROUPS = 16


def waves_per_unit(resources: Mapping[str, int], threads: int, target: Target) -> int:
    """Waves of the kernel on one compute unit, of `SIMDS * MOST_WAVES`; 0 for an NVIDIA GPU.

    Args:
        resources: `vgpr` counts AGPRs, too, as the metadata of these architectures has it.
        threads: lanes of a work group.
        target: an AMD GPU.
    """
    if target.arch not in LDS_GRANULE:
        return 0
    waves = _blocks(threads, target.wave_size)
    vector = max(1, _blocks(resources["vgpr"], VECTOR_GRANULE)) * VECTOR_GRANULE
    by_scalars = MOST_WAVES if resources["sgpr"] <= SCALAR_REGISTERS else MOST_WAVES - 1
    by_simd = min(by_scalars, VECTOR_REGISTERS // vector)
    groups = SIMDS * by_simd // waves
    if resources["lds_bytes"]:
        granule = LDS_GRANULE[target.arch]
        block = _blocks(resources["lds_bytes"], granule) * granule
        groups = min(groups, target.lds_bytes // block)
    if waves > 1:
        groups = min(groups, MOST_GROUPS)
    return groups * waves


def _blocks(amount: int, size: int) -> int:
    return -(-amount // size)
