"""Rows picked by indices: index and take."""

from fusec.kernels.index import cpu

KERNELS = cpu.KERNELS
