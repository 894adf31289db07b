"""fusec: an ahead-of-time graph-rewriting compiler for AMD Instinct GPUs and the CPU."""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # that of `typing` takes longer to import than the rest
if TYPE_CHECKING:
    from fusec.api import compile
    from fusec.runtime import load

__all__ = ["__version__", "compile", "load"]


def __getattr__(name: str) -> object:
    """Import `compile` and `load` on first use: a runtime needs no compiler, and the reverse."""
    if name == "compile":
        from fusec.api import compile

        return compile
    if name == "load":
        from fusec.runtime import load

        return load
    raise AttributeError(f"module `fusec` has no attribute `{name}`")
