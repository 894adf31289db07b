"""Causal filters along a sequence."""

from fusec.kernels.causal_conv1d import cpu, triton

KERNELS = (*cpu.KERNELS, *triton.TRITON)
