"""Rotary position embedding."""

from fusec.kernels.rope import cpu

KERNELS = cpu.KERNELS
