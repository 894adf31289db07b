"""A device for machines without a GPU: it runs the program of a GPU target on the CPU.

Launches of Triton kernels go through Triton's interpreter, those of HIP kernels through a host
build of the same source.  It is for tests: as strict as it can be, and slow.
"""

from fusec.emulator.device import Emulator

__all__ = ["Emulator"]
