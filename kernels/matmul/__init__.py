"""Product of batches of matrices."""

from fusec.kernels.matmul import cpu

KERNELS = cpu.KERNELS
