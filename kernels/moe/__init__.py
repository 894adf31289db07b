"""Mixture of experts."""

from fusec.kernels.moe import cpu

KERNELS = cpu.KERNELS
