"""Experts of 4-bit floats, multiplied by scaled matrix units.

Fuses   moe(x, ...)   into   moe_mxfp4(quantize(x), codes, scales, ...)

The tokens, and the activated rows between the products, are quantised to e4m3fn in groups of 32,
with e8m0 scales rounded even.  The weights lie as the kernels read them: rows of gate and up
alternate, both sizes are padded to multiples of 256, and so are the biases, which adds nothing to a
result.

Leaves it alone when
  weight       a weight or a bias is computed, not stored
  request      a request fits some of the weights, and not others
  scales       the codes were lost on the way, or the scales are none that a kernel takes
  shape        a size is not whole groups of 32
  activation   the experts have no gate beside which up lies
  dtype        the tokens are not in a 16-bit type
  mxfp4.arch   the target has no scaled matrix units
  mxfp4.align  a size is no multiple of 256, and `--mxfp4-align reject` does not have it padded
"""

from __future__ import annotations

from typing import ClassVar

from fusec.formats import Scaling
from fusec.passes.mxfp4_experts import (
    ACTIVATION_SCALING,
    GUARDS,
    Mxfp4Experts,
    has_scaled_units,
    is_aligned,
)
from fusec.rewrite import Guard


class MoeMxfp4Native(Mxfp4Experts):
    """The faster of the two: both factors are in few bits."""

    name: ClassVar[str] = "moe_mxfp4_native"
    fusion: ClassVar[str | None] = "moe_mxfp4_native"
    rounds: ClassVar[bool] = True
    guards: ClassVar[tuple[Guard, ...]] = (has_scaled_units, is_aligned, *GUARDS)
    scaling: ClassVar[Scaling | None] = ACTIVATION_SCALING
