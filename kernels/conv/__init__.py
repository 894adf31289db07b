"""Convolution."""

from fusec.kernels.conv import cpu

KERNELS = cpu.KERNELS
