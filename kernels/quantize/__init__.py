"""Rows brought into narrow formats, and back."""

from fusec.kernels.quantize import cpu
from fusec.kernels.quantize.triton import TRITON

KERNELS = (*cpu.KERNELS, *TRITON)
