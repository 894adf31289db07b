"""Reads assembly: the width of its loads, its matrix instructions, and what goes wrong.

gfx950 does not execute `v_pk_fma_f32` right where both halves of the result read one source from
the high half of its register pair (`op_sel:[0,1,0]`): the low half now and then keeps its
accumulator.  It is seen in public as rocMLIR pull request 2459.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fusec.link.gpu_kernel import MachineCode

_INSTRUCTION = re.compile(r"^\s+([a-z][a-z0-9_]+)\b([^;]*)")
_ACCESS = re.compile(r"(?:global|flat|buffer)_(load|store)_([a-z0-9_]+)")
_SELECT = re.compile(r"\bop_sel:\[([01,]+)\]")
_SELECT_HIGH = re.compile(r"\bop_sel_hi:\[([01,]+)\]")

_PTX_ACCESS = re.compile(r"\b(ld|st)\.global(?:\.[a-uw-z]\w*)*(?:\.v(\d))?\.[bfsu](\d+)\b")
_PTX_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global[^;]*?\], *(\w+)")
_PTX_MATRIX = re.compile(r"\b((?:wgmma\.mma_async|mma)\.sync\.aligned\.[a-z0-9.]+)")

_WIDTHS = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "short": 2, "byte": 1}

FORBIDDEN = {"gfx950": ("v_pk_fma_f32",)}
"""Packed instructions, by architecture, that must not broadcast the high half of a source."""


def read_assembly(text: str, arch: str) -> MachineCode:
    """What the instructions of `text`, compiled for `arch`, show."""
    widest = {"load": 0, "store": 0}
    mfma: set[str] = set()
    forbidden: dict[str, None] = {}
    for name, operands in _instructions(text):
        access = _ACCESS.match(name)
        if access is not None:
            kind = access[1]
            widest[kind] = max(widest[kind], _width(access[2]))
        elif name.startswith(("v_mfma_", "v_smfmac_")):
            mfma.add(name.removesuffix("_e64"))
        elif name in FORBIDDEN.get(arch, ()) and _broadcasts_high(operands):
            forbidden[f"{name} {' '.join(operands.split())}"] = None
    return MachineCode(widest["load"], widest["store"], tuple(sorted(mfma)), tuple(forbidden))


def read_ptx(text: str) -> MachineCode:
    """What the instructions of PTX `text` show."""
    widest = {"ld": 0, "st": 0}
    for kind, count, bits in _PTX_ACCESS.findall(text):
        widest[kind] = max(widest[kind], int(count or 1) * int(bits) // 8)
    copies = [int(size, 0) for size in _PTX_COPY.findall(text)]
    matrix = sorted(set(_PTX_MATRIX.findall(text)))
    return MachineCode(max(widest["ld"], *copies, 0), widest["st"], tuple(matrix))


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        found = _INSTRUCTION.match(line)
        if found is not None:
            yield found[1], found[2]


def _width(suffix: str) -> int:
    """Bytes that a lane moves, from the end of an instruction's name."""
    for name, width in _WIDTHS.items():
        if name in suffix:
            return width
    return 0


def _broadcasts_high(operands: str) -> bool:
    """Whether the low and the high half of the result both read the high half of one source.

    The two selections default to the low half, 0, and the high half, 1.
    """
    low = _SELECT.search(operands)
    if low is None:
        return False
    high = _SELECT_HIGH.search(operands)
    low_bits = low[1].split(",")
    high_bits = high[1].split(",") if high is not None else ["1"] * len(low_bits)
    return ("1", "1") in zip(low_bits, high_bits, strict=True)
