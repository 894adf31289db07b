"""Sources: one module a format, each of which gives a `Graph`."""

from fusec.frontend.dims import DimRequest, DimSpec
from fusec.frontend.sources import Source, load_source

__all__ = ["DimRequest", "DimSpec", "Source", "load_source"]
