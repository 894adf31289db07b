"""Counts of equally wide bins."""

from fusec.kernels.histogram import cpu

KERNELS = cpu.KERNELS
