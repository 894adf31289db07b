"""How far a result may be from what is meant: every tolerance of `fusec verify`.

Errors are against the meaning in float64.  `rms` is the root mean square of the difference,
relative to that of what is meant; `largest` is the largest difference, relative to the largest
magnitude.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fusec.ir import Graph

RMS_RATIO = 1.5
"""How many times the reference's own error the root mean square may be: two correct programs that
round in different places differ from the exact answer by about as much each."""

LARGEST_RATIO = 3.0
"""The same for the largest difference, which varies more."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a dtype explains by itself.

    Attributes:
        rms: of a whole model, whatever the reference's own error.
        largest: of a whole model, likewise.
        read: the largest `rms` between the framework and the graph as it was read: beyond it fusec
            has read another model than the framework runs.
        step: the largest difference of one step from the meaning of its nodes.
    """

    rms: float
    largest: float
    read: float
    step: float


TOLERANCES: Mapping[str, Tolerance] = {
    "f64": Tolerance(1e-7, 1e-6, 1e-5, 1e-6),
    "f32": Tolerance(5e-5, 1e-4, 2e-3, 1e-4),
    "f16": Tolerance(1e-3, 4e-3, 0.05, 4e-3),
    "bf16": Tolerance(2.0**-8, 2.0**-6, 0.25, 2.0**-6),
}
"""By the narrowest float that the model computes in."""

CODES_THAT_DIFFER = 0.02
"""The share of the codes of a narrow format, and of integers made from floats, that may differ."""

INTEGERS_READ = 0.5
"""The share of an integer output's elements in which the framework may differ from the graph as it
was read: of several that are largest, either may give any."""

CODES = ("f8", "f4")
"""The narrow formats, by the first letters of their dtypes."""

QUANTISED_ROWS: Mapping[str, tuple[float, float]] = {"f8": (0.02, 0.08), "f4": (0.05, 0.2)}
"""`rms` and `largest` that codes of rows explain: a row just between two codes may become either,
and then differs by a step of the format."""

ROUNDING: Mapping[str, float] = {
    "f64": 1e-9,
    "f32": 1e-5,
    "f16": 4e-3,
    "bf16": 2.0**-7,
    "f8": 2.0**-3,
    "f4": 0.35,
}
"""What a pass that rounds (`Pass.rounds`) may change of a value whose operands are as they were, as
`rms`, by the narrowest dtype that it brings in.  Any other pass may change what float64 rounds, and
no more.  Weights in 4 bits were seen to move a value by 0.13, in 8 bits by 0.05, and weights
that are folded in bf16 by 0.002."""

PRECISION: Mapping[str, float] = {"highest": 1.0, "high": 32.0, "medium": 256.0}
"""What `--fp32-precision` multiplies the tolerances of f32 with."""

_WIDTH = ("f4", "f8", "bf16", "f16", "f32", "f64")


def format_of(dtype: str) -> str:
    """The key of a dtype in the tables: `f8` for every 8-bit float, `f4` for 4-bit floats."""
    return dtype[:2] if dtype[:2] in CODES else dtype


def narrowest(dtypes: Iterable[str]) -> str:
    """The narrowest float among `dtypes`, as the tables call it; `f64` if there is none."""
    found = {format_of(dtype) for dtype in dtypes}
    return next((name for name in _WIDTH if name in found), "f64")


def float_dtypes(graph: Graph) -> set[str]:
    """The dtypes of all values of a graph."""
    values = [*graph.inputs, *graph.parameters]
    values += [value for node in graph.nodes() for value in node.outputs]
    return {graph.type(value).dtype for value in values}


def computed_in(graph: Graph) -> str:
    """The narrowest of `f64`, `f32`, `f16` and `bf16` that a graph as it was read computes in."""
    return narrowest(dtype for dtype in float_dtypes(graph) if dtype in TOLERANCES)
