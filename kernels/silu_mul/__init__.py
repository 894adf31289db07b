"""Gated activations: act(gate) * up."""

from fusec.kernels.silu_mul import cpu, hip, triton

KERNELS = (*cpu.KERNELS, *hip.HIP, *triton.TRITON)
