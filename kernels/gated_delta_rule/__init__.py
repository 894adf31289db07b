"""The gated delta rule."""

from fusec.kernels.gated_delta_rule import cpu, triton

KERNELS = (*cpu.KERNELS, *triton.TRITON)
