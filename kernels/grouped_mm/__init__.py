"""Products of stretches of rows with their own weights."""

from fusec.kernels.grouped_mm import cpu

KERNELS = cpu.KERNELS
