"""Gated activations: act(gate) * up."""

from fusec.kernels.silu_mul import cpu, triton

KERNELS = (*cpu.KERNELS, *triton.TRITON)
