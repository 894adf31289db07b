"""Product of batches of matrices."""

from fusec.kernels.matmul import cpu, triton

KERNELS = (*triton.KERNELS, *cpu.KERNELS)
"""matmul by Triton on GPUs, on the CPU, and linear with a weight that is known at run time only."""
