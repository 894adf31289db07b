"""Products of stretches of rows with their own weights."""

from fusec.kernels.grouped_mm import cpu, triton

KERNELS = (triton.TRITON, *cpu.KERNELS)
"""grouped_mm by Triton on GPUs, and on the CPU with the weights packed ahead of time."""
