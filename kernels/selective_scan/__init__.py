"""Selective scans, the recurrence of Mamba."""

from fusec.kernels.selective_scan import cpu, triton

KERNELS = (*cpu.KERNELS, *triton.TRITON)
