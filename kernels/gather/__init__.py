"""Elements picked along an axis."""

from fusec.kernels.gather import cpu

KERNELS = cpu.KERNELS
