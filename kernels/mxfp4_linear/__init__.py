"""Product with a weight of 4-bit floats, a scale for each 32."""

from fusec.kernels.mxfp4_linear.cpu import CPP
from fusec.kernels.mxfp4_linear.triton import DEQUANT, SCALED

KERNELS = (SCALED, DEQUANT, CPP)
