"""Running sums and products."""

from fusec.kernels.scan import cpu

KERNELS = cpu.KERNELS
