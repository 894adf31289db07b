"""Euclidean norm of rows."""

from fusec.kernels.l2_norm import cpu

KERNELS = cpu.KERNELS
