"""How far arrays are from what is meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]

SMALL = 2.0**-10
"""Elements below this part of the largest do not count for `max_relative`: next to nothing, any
difference is large."""


@dataclass(frozen=True, slots=True)
class Measures:
    """How far a result is from what is meant, over the places where both are finite.

    Attributes:
        max_abs: the largest difference.
        max_relative: the largest difference relative to the element itself, of those above `SMALL`.
        cosine: of the angle between both.
        rms: root mean square of the difference.
        rms_error: the same, relative to the root mean square of what is meant.
        error: the largest difference, relative to the largest magnitude of what is meant.
        places: mean square of the difference at each place (all axes but the last), relative to
            the mean square of what is meant.
        misplaced: places where one is finite and the other is not, or another infinity.
        nonfinite: places where the result is not finite.
        differing: the share of elements that differ.
    """

    max_abs: float
    max_relative: float
    cosine: float
    rms: float
    rms_error: float
    error: float
    places: Floats
    misplaced: int
    nonfinite: int
    differing: float

    def document(self) -> dict[str, Any]:
        """As it stands in JSON."""
        names = ("max_abs", "max_relative", "cosine", "rms", "rms_error", "error")
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        return {**found, "misplaced": self.misplaced, "nonfinite": self.nonfinite}


def measured(got: Array, wanted: Array) -> Measures:
    """How far `got` is from `wanted`, of the same shape."""
    ours, meant = (np.asarray(each, np.float64) for each in (got, wanted))
    usual = np.isfinite(ours) & np.isfinite(meant)
    alike = usual | (ours == meant) | (np.isnan(ours) & np.isnan(meant))
    ours, meant = (np.where(usual, each, 0.0) for each in (ours, meant))
    difference = np.abs(ours - meant)
    top = float(np.abs(meant).max(initial=0))
    counted = np.abs(meant) > SMALL * top
    ratios = np.divide(difference, np.abs(meant), where=counted, out=np.zeros_like(meant))
    square, own = _mean(difference**2), _mean(meant**2)
    lengths = float(np.linalg.norm(ours)) * float(np.linalg.norm(meant))
    by_place = np.mean(difference**2, axis=-1).reshape(-1) if difference.ndim else difference**2
    if meant.ndim < 2:
        by_place = (difference**2).reshape(-1)
    return Measures(
        max_abs=float(difference.max(initial=0)),
        max_relative=float(ratios.max(initial=0)),
        cosine=float(np.vdot(ours, meant)) / lengths if lengths else float(not square),
        rms=square**0.5,
        rms_error=_ratio(square, own) ** 0.5,
        error=_ratio(float(difference.max(initial=0)), top),
        places=np.asarray(by_place / own if own else by_place, np.float64),
        misplaced=int(np.sum(~alike)),
        nonfinite=int(np.sum(~np.isfinite(np.asarray(got, np.float64)))),
        differing=_mean(np.asarray((difference != 0) | ~alike, np.float64)),
    )


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else 0.0


def _ratio(value: float, scale: float) -> float:
    return value / scale if scale else value
