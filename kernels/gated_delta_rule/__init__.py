"""The gated delta rule."""

from fusec.kernels.gated_delta_rule import cpu

KERNELS = cpu.KERNELS
