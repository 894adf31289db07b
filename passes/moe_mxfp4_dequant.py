"""Experts of 4-bit floats, dequantised to a wider type inside the kernel.

Fuses   moe(x, ...)   into   moe_mxfp4(x, codes, scales, ...)

Where `moe_mxfp4_native` was refused.  The weights take a quarter of the room and of the bandwidth
that they would take; the products are those of the type of the tokens.  On a GPU they lie in memory
as there, unless `--mxfp4-align reject` keeps their sizes; on a CPU nothing is padded, and rows keep
their order.

Leaves it alone when
  weight      a weight or a bias is computed, not stored
  request     a request fits some of the weights, and not others
  scales      the codes were lost on the way, or the scales are none that a kernel takes
  shape       a size is not whole groups of 32
  activation  the experts have no gate beside which up lies, on a GPU
  dtype       the tokens are not in a 16-bit type, or on a CPU no float
"""

from __future__ import annotations

from typing import ClassVar

from fusec.passes.mxfp4_experts import GUARDS, Mxfp4Experts
from fusec.rewrite import Guard


class MoeMxfp4Dequant(Mxfp4Experts):
    """What any target can do."""

    name: ClassVar[str] = "moe_mxfp4_dequant"
    fusion: ClassVar[str | None] = "moe_mxfp4_dequant"
    rounds: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = (*Mxfp4Experts.after, "moe_mxfp4_native")
    guards: ClassVar[tuple[Guard, ...]] = GUARDS
    instead_of: ClassVar[tuple[str, ...]] = ("moe_mxfp4_native",)
