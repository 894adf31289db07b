"""Euclidean norm of rows."""

from fusec.kernels.l2_norm import cpu, triton

KERNELS = (*cpu.KERNELS, *triton.TRITON)
