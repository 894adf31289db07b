"""Layer norm."""

from fusec.kernels.layer_norm import cpu

KERNELS = cpu.KERNELS
