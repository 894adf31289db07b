"""Launches of the C++ kernels that make rows and quantise them: `include/fusec/quantise_rows.h`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fusec.formats import Scaling, magnitudes
from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr
from fusec.kernels.cpu import OUTER_DIMS, float_kernel, outer_params
from fusec.kernels.launch import Call, Layout, Param, Storage, dense_strides
from fusec.kernels.triton_rows import ROUNDINGS
from fusec.symbolic import Dim
from fusec.target import Target

FORMATS = {"f8e4m3fn": 0, "f8e4m3fnuz": 1, "f8e5m2": 2, "f4e2m1x2": 3}
"""Numbers of `fusec::FormatNumber` in `include/fusec/fp8.h`."""


WHOLE_ROW = 1 << 40
"""A group that no row is longer than."""


def refused_scaling(scaling: Scaling, static: bool) -> str | None:
    """Why the kernels do not quantise like this, or `None`.

    Args:
        scaling: how rows are quantised.
        static: whether the scale is given.
    """
    if scaling.granularity == "tensor" and not static:
        return "scales: the scale of a whole tensor has to be given"
    if scaling.maximum not in magnitudes(scaling.dtype):
        return f"scales: {scaling.maximum:g} is no number of {scaling.dtype}"
    if scaling.packed and scaling.granularity == "group" and scaling.group % 2:
        return f"scales: a group of {scaling.group} elements is not whole bytes"
    return None


def supports_quantised_rows(graph: Graph, node: Node, target: Target) -> str | None:
    """Takes float rows of one dtype, in any format whose scales follow from rows or are given."""
    refused = float_kernel(graph, node, target)
    if refused is not None:
        return refused
    if any(graph.type(value).dtype == "f64" for value in node.inputs):
        return "it does not mix f64 with other dtypes"
    if node.attrs.get("shape") is not None:
        seen, row = (graph.type(value).shape[-1] for value in (node.outputs[0], node.inputs[0]))
        if node.attrs["quant_dtype"] == "f4e2m1x2" and isinstance(seen, int):
            seen *= 2
        if not isinstance(seen, int) or not isinstance(row, int) or row == 0 or seen % row:
            return f"shape: a row of {seen} elements is not whole rows of {row}"
        if node.attrs["quant_dtype"] == "f4e2m1x2" and row % 2:
            return f"shape: {row} elements are not whole bytes"
    return refused_scaling(Scaling.of(node.attrs), bool_attr(node.attrs, "has_scale"))


def quantised_layouts(
    graph: Graph, node: Node, inputs: Sequence[Layout] | None = None
) -> tuple[Layout, ...]:
    """Strided rows, but for scales, and for results that are seen in another shape.

    Args:
        graph: of the node.
        node: what quantises.
        inputs: what is needed of the rows, if that is less.
    """

    def layout(value: str) -> Layout:
        return "rows" if graph.type(value).rank <= OUTER_DIMS + 1 else "contiguous"

    codes = "contiguous" if node.attrs.get("shape") is not None else layout(node.outputs[0])
    quantised: tuple[Layout, ...] = (codes, "contiguous")
    if bool_attr(node.attrs, "has_scale"):
        quantised = (codes,)
    rest = node.outputs[len(quantised) :]
    plain: list[Layout] = [layout(value) for value in rest]
    if node.attrs.get("with_plain"):
        plain[0] = codes
    given = [layout(value) for value in node.inputs]
    given[: len(inputs or ())] = inputs or ()
    return (*given, *quantised, *plain)


@dataclass(frozen=True, slots=True)
class QuantisedRows:
    """Where the results of a kernel that quantises its rows lie.

    Attributes:
        scaling: how rows are quantised.
        codes: seen as the rows that are made; two elements a byte for 4-bit floats.
        scale: f32 or e8m0.
        plain: the rows as they are, if they are wanted.
        together: rows that are quantised as one.
    """

    scaling: Scaling
    codes: Storage
    scale: Storage
    plain: Storage | None
    together: Dim

    @staticmethod
    def of(call: Call, outputs: list[Storage], scale: Storage | None = None) -> QuantisedRows:
        """Takes codes, scales and, if wanted, plain rows from the front of `outputs`.

        Args:
            call: of a node that quantises rows of the shape of its first operand.
            outputs: what is left of the results.
            scale: the scale that is given, if one is.
        """
        scaling = Scaling.of(call.attrs)
        codes = outputs.pop(0)
        scales = outputs.pop(0) if scale is None else scale
        plain = outputs.pop(0) if call.attrs.get("with_plain") else None
        per_code = 2 if scaling.packed else 1
        if call.attrs.get("shape") is None:
            return QuantisedRows(scaling, codes, scales, plain, 1)
        rows = call.input_type(0).shape
        together = call.output_type(0).shape[-1] * per_code // rows[-1]
        codes = _seen_as(codes, (*rows[:-1], rows[-1] // per_code))
        plain = None if plain is None else _seen_as(plain, rows)
        return QuantisedRows(scaling, codes, scales, plain, together)

    @property
    def rows(self) -> Storage:
        """What stands where the plain rows do among the params of a maker."""
        return self.codes if self.plain is None else self.plain

    def outer(self, *storages: Storage) -> tuple[list[Param], list[Param]]:
        """`outer_params` of the storages of a maker, and the strides of codes along those dims."""
        params = outer_params(*storages, self.codes)
        return params[:-OUTER_DIMS], params[-OUTER_DIMS:]

    def params(self, codes_strides: Sequence[Param]) -> tuple[Param, ...]:
        """`QuantiseParams`."""
        scaling = self.scaling
        is_byte, *steps = _scale_params(self.scale, scaling)
        return (
            *codes_strides,
            FORMATS[scaling.dtype],
            self.together,
            _group(scaling),
            is_byte,
            ROUNDINGS[scaling.rounding],
            scaling.maximum,
            scaling.floor,
            scaling.upper_bound or 0.0,
            *steps,
            int(self.plain is not None),
        )


def _group(scaling: Scaling) -> int:
    """Elements that share a scale; 0 where one scale is given for all."""
    if scaling.granularity == "group":
        return scaling.group
    return WHOLE_ROW if scaling.granularity == "token" else 0


def _seen_as(storage: Storage, shape: tuple[Dim, ...]) -> Storage:
    """A dense storage in another shape."""
    return replace(storage, shape=shape, strides=dense_strides(shape))


def _scale_params(scale: Storage, scaling: Scaling) -> tuple[Param, Param, Param]:
    """Whether scales are bytes, and the steps from a row and from a group to the next."""
    steps: tuple[Dim, Dim] = (0, 0)
    if scaling.granularity != "tensor" and scaling.layout == "column":
        steps = (1, scale.shape[1])
    elif scaling.granularity != "tensor":
        steps = (scale.shape[-1], 1)
    return int(scaling.scale_dtype == "e8m0"), *steps


def dequantise_params(scale: Storage, scaling: Scaling) -> tuple[Param, ...]:
    """The params of `fusec_dequantize` after the length of a row."""
    return (FORMATS[scaling.dtype], _group(scaling), *_scale_params(scale, scaling))
