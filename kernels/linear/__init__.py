"""Product with a weight matrix."""

from fusec.kernels.linear import cpu

KERNELS = cpu.KERNELS
