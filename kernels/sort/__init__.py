"""Order along an axis: sort, topk, argmax, argmin."""

from fusec.kernels.sort import cpu, triton

KERNELS = (*cpu.KERNELS, *triton.TRITON)
