"""Where onnxruntime runs what nothing else does."""

from __future__ import annotations

from fusec.rewrite.guard import Rejection
from fusec.target import Target

ROCM_ARCHES = frozenset(
    ("gfx908", "gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1101", "gfx1200", "gfx1201")
)
"""What the wheel of onnxruntime-rocm 1.22.2 has machine code for."""


def arch_rejection(target: Target, *, allow_host_fallback: bool = False) -> Rejection | None:
    """Why onnxruntime runs nothing on `target`: the guard `ort.arch`."""
    if target.family == "cpu" or target.arch in ROCM_ARCHES or allow_host_fallback:
        return None
    reason = f"onnxruntime-rocm 1.22.2 has no machine code for `{target.arch}`"
    hint = "`--allow-host-fallback` runs it on the CPU of the host"
    return Rejection("ort.arch", reason, hint=hint)
