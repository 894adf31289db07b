"""Records of the kernel of `rms_norm`, which also sums."""

from __future__ import annotations

from fusec.kernels.rms_norm.triton import launch_norm
from fusec.kernels.triton_rows import row_kernels

TRITON = row_kernels(("add_rms_norm", "add_rms_norm_quant"), "rms_norm", launch_norm)
