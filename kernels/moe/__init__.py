"""Mixture of experts."""

from fusec.kernels.moe import cpu, triton

KERNELS = (*cpu.KERNELS, *triton.TRITON)
