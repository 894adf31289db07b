"""The translations of ATen operations, by theme; importing this fills the table."""

from fusec.frontend.aten_ops import (
    creation,
    elementwise,
    fourier,
    indexing,
    layers,
    linear_algebra,
    moving,
    reductions,
    special,
    symbols,
    views,
)
from fusec.frontend.aten_ops.base import TABLE

__all__ = [
    "TABLE",
    "creation",
    "elementwise",
    "fourier",
    "indexing",
    "layers",
    "linear_algebra",
    "moving",
    "reductions",
    "special",
    "symbols",
    "views",
]
