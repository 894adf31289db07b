"""Root mean square norm."""

from fusec.kernels.rms_norm import cpu

KERNELS = cpu.KERNELS
