"""Triangular systems."""

from fusec.kernels.solve_triangular import cpu

KERNELS = cpu.KERNELS
