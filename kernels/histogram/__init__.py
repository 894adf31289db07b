"""Counts of equally wide bins."""

from fusec.kernels.histogram import cpu, triton

KERNELS = (*cpu.KERNELS, *triton.TRITON)
