"""Rotation of queries and keys in one launch, after their norms where there are any."""

from fusec.kernels.qk_norm_rope import cpu, triton

KERNELS = (*cpu.KERNELS, *triton.TRITON)
