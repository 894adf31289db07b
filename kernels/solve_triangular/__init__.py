"""Triangular systems."""

from fusec.kernels.solve_triangular import cpu, triton

KERNELS = (*cpu.KERNELS, *triton.TRITON)
