"""Routers: which experts see a token, and with what weight."""

from fusec.kernels.router import cpu, triton

KERNELS = (*cpu.KERNELS, *triton.TRITON)
