"""What Triton's interpreter computes otherwise than a GPU does, mended as for the emulator."""

from __future__ import annotations

from fusec.emulator.arithmetic import mend

__all__ = ["mend"]
