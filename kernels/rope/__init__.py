"""Rotary position embedding."""

from fusec.kernels.rope import cpu, triton

KERNELS = (*cpu.KERNELS, *triton.TRITON)
