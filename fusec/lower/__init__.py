"""Lowering: from a graph to steps over buffers, with the code they call."""

from fusec.lower.lowering import lower
from fusec.lower.steps import Lowered, Residual

__all__ = ["Lowered", "Residual", "lower"]
