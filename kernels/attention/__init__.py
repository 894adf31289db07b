"""Softmax attention."""

from fusec.kernels.attention import cpu, triton

KERNELS = (triton.TRITON, *cpu.KERNELS)
