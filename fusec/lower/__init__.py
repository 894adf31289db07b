"""Lowering: from a graph to steps over buffers, with the code they call."""

from fusec.lower.lowering import Lowered, Residual, lower

__all__ = ["Lowered", "Residual", "lower"]
