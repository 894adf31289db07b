"""Product with a weight matrix."""

from fusec.kernels.linear import cpu, triton

KERNELS = (triton.LINEAR, triton.LINEAR_EPILOGUE, *cpu.KERNELS)
"""linear and what follows it by Triton on GPUs, linear on the CPU with the weight packed."""
