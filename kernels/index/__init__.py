"""Rows picked by indices: index and take."""

from fusec.kernels.index import cpu, triton

KERNELS = (*cpu.KERNELS, *triton.TRITON)
