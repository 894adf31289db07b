"""Convolution."""

from fusec.kernels.conv import cpu, triton

KERNELS = (*triton.KERNELS, *cpu.KERNELS)
"""conv by Triton on GPUs, and on the CPU."""
