"""Rules of `canonicalise`: each one looks at a node and its operands."""

from fusec.passes.canonical.rewriter import Rewriter, Rule

__all__ = ["Rewriter", "Rule"]
