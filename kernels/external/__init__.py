"""Kernels of libraries that are installed beside an artifact, such as AITER.

`fusec.kernels.external.provider` reads `--provider LIBRARY==VERSION` and gives the records for it.
None is in the registry: without `--provider` no library is used.
"""

KERNELS = ()
