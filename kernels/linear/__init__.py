"""Product with a weight matrix."""

from fusec.kernels.linear import cpu, triton

KERNELS = (triton.TRITON, *cpu.KERNELS)
"""linear by Triton on GPUs, and on the CPU with the weight packed when the artifact is written."""
