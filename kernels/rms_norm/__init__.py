"""Root mean square norm; `add_rms_norm` in HIP is here too, for its source is the same."""

from fusec.kernels.rms_norm import cpu, hip, triton

KERNELS = (*cpu.KERNELS, *triton.TRITON, *hip.HIP)
