"""Elements written by index: scatter and index_put."""

from fusec.kernels.scatter import cpu, triton

KERNELS = (*cpu.KERNELS, *triton.TRITON)
