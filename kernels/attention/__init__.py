"""Softmax attention."""

from fusec.kernels.attention import cpu

KERNELS = cpu.KERNELS
