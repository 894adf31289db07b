"""Softmax and its logarithms."""

from fusec.kernels.softmax import cpu

KERNELS = cpu.KERNELS
