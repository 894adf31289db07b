"""What a person asks of passes, beside which ones run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

QuantFormat = Literal["fp8-tensor", "fp8-token", "fp8-block", "mxfp4", "mxfp8"]


@dataclass(frozen=True, slots=True)
class QuantRequest:
    """A format for some of the weights.

    Attributes:
        format: of the codes and their scales.
        pattern: a shell pattern (`fnmatch`) over the names of weights; `experts` for those of
            routed experts, `*` for all.
    """

    format: QuantFormat
    pattern: str = "*"

    def __str__(self) -> str:
        return self.format if self.pattern == "*" else f"{self.format}:{self.pattern}"


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one compilation.

    Attributes:
        quantise: what was asked for with `--quantize`; the first whose pattern fits a weight
            counts.  Weights that the source holds quantised stay so without being asked for.
        mxfp4_align: what happens to sizes that the native mxfp4 kernels do not take: `pad` with
            zeros, or `reject` those kernels.
        tensor_parallel: ranks that heads are divided among.
    """

    quantise: tuple[QuantRequest, ...] = ()
    mxfp4_align: Literal["pad", "reject"] = "pad"
    tensor_parallel: int = 1


DEFAULTS = Settings()
"""Nothing is asked for."""
