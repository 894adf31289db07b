"""Nodes that AITER's functions can compute, and what the calls of them are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fusec.formats import Scaling
from fusec.ir import Graph, Node, TensorType
from fusec.ir.types import Attr
from fusec.kernels.launch import Call, Storage, dense_strides
from fusec.kernels.registry import Kernel
from fusec.symbolic import Dim, symbol
from fusec.target import Target, target_named

ROWS = symbol("rows")
GROUPS = Scaling("f8e4m3fn", "group", 128, maximum=448.0)
TOKENS = Scaling("f8e4m3fn", "token", maximum=448.0)
TENSOR = Scaling("f8e4m3fn", "tensor", maximum=448.0)
PACKED = Scaling("f4e2m1x2", "group", 32, "e8m0", "even", maximum=6.0)
NORM: dict[str, Attr] = {"eps": 1e-6, "weight_offset": 0}
TWO_NORMS: dict[str, Attr] = {"eps1": 1e-6, "eps2": 1e-5, "weight_offset": 0}
GATED: dict[str, Attr] = {**NORM, "activation": "silu", "norm_before_gate": True}


@dataclass(frozen=True)
class Sample:
    """An operation over operands of `shapes`, all of one dtype but for a given scale."""

    op: str
    shapes: tuple[tuple[Dim, ...], ...]
    attrs: Mapping[str, Attr]
    scaling: Scaling | None = None
    dtypes: Mapping[int, str] = field(default_factory=dict)
    dtype: str = "bf16"
    halves: bool = False

    def node(self) -> tuple[Graph, Node]:
        """The operation alone in a graph; with `halves`, its operands are halves of one value."""
        graph = Graph("sample", {"rows": (1, 4096), "width": (1, 64)})
        attrs = {**self.attrs, **(self.scaling.attrs() if self.scaling else {})}
        operands = [
            graph.add_input(f"x{index}", TensorType(self.dtypes.get(index, self.dtype), shape))
            for index, shape in enumerate(self.shapes)
        ]
        if self.halves:
            operands = halves_of(graph, operands[0])
        return graph, graph.add(self.op, operands, attrs)


def halves_of(graph: Graph, whole: str, first: int = 0) -> list[str]:
    """Gate and up of one value, in this order unless `first` is 1."""
    length = graph.type(whole).shape[-1]
    assert isinstance(length, int)
    parts: list[str] = []
    for start in (0, length // 2):
        window: dict[str, Attr] = {"axis": -1, "start": start, "stop": start + length // 2}
        parts.append(graph.add("slice", [whole], {**window, "step": 1}).output)
    return [parts[first], parts[1 - first]]


SAMPLES = {
    "rms_norm": Sample("rms_norm", ((ROWS, 4096), (4096,)), {**NORM, "has_weight": True}),
    "add_rms_norm": Sample("add_rms_norm", ((ROWS, 4096), (ROWS, 4096), (4096,)), NORM),
    "dual_rms_norm": Sample(
        "dual_rms_norm", ((ROWS, 1536), (1536,), (ROWS, 512), (512,)), TWO_NORMS
    ),
    "rms_norm_quant": Sample(
        "rms_norm_quant", ((ROWS, 4096), (4096,)), {**NORM, "has_weight": True}, GROUPS
    ),
    "rms_norm_quant/tensor": Sample(
        "rms_norm_quant",
        ((ROWS, 4096), (4096,), (1,)),
        {**NORM, "has_weight": True, "has_scale": True},
        TENSOR,
        {2: "f32"},
    ),
    "rms_norm_quant/packed": Sample(
        "rms_norm_quant", ((ROWS, 4096), (4096,)), {**NORM, "has_weight": True}, PACKED
    ),
    "add_rms_norm_quant": Sample(
        "add_rms_norm_quant", ((ROWS, 4096), (ROWS, 4096), (4096,)), NORM, GROUPS
    ),
    "add_rms_norm_quant/tensor": Sample(
        "add_rms_norm_quant",
        ((ROWS, 4096), (ROWS, 4096), (4096,), (1,)),
        {**NORM, "has_scale": True},
        TENSOR,
        {3: "f32"},
    ),
    "add_rms_norm_quant/packed": Sample(
        "add_rms_norm_quant", ((ROWS, 4096), (ROWS, 4096), (4096,)), NORM, PACKED
    ),
    "dual_rms_norm_quant": Sample(
        "dual_rms_norm_quant",
        ((ROWS, 1536), (1536,), (ROWS, 512), (512,)),
        {**TWO_NORMS, "quantises": "first"},
        GROUPS,
    ),
    "dual_rms_norm_quant/token": Sample(
        "dual_rms_norm_quant",
        ((ROWS, 1536), (1536,), (ROWS, 512), (512,)),
        {**TWO_NORMS, "quantises": "first"},
        TOKENS,
    ),
    "gated_rms_norm_quant": Sample(
        "gated_rms_norm_quant",
        ((ROWS, 16, 128), (128,), (ROWS, 16, 128)),
        {**GATED, "shape": (ROWS, 2048)},
        GROUPS,
    ),
    "gated_rms_norm_quant/token": Sample(
        "gated_rms_norm_quant",
        ((ROWS, 16, 128), (128,), (ROWS, 16, 128)),
        {**GATED, "shape": (ROWS, 2048)},
        TOKENS,
    ),
    "silu_mul_quant": Sample("silu_mul_quant", ((ROWS, 4096),), {}, GROUPS, halves=True),
    "silu_mul_quant/packed": Sample("silu_mul_quant", ((ROWS, 4096),), {}, PACKED, halves=True),
}
"""One node for each way in which a function is called."""


def refusal(kernel: Kernel, sample: Sample, target: str = "gfx950") -> str | None:
    """Why `kernel` cannot compute `sample`."""
    graph, node = sample.node()
    return kernel.supports(graph, node, target_named(target))


def call_of(graph: Graph, node: Node, target: Target) -> Call:
    """Every operand and result dense in a buffer of its own, halves in that of their whole."""
    buffers: dict[str, Storage] = {}
    for value in (*graph.inputs, *node.outputs):
        kind = graph.type(value)
        strides = dense_strides(kind.shape)
        buffers[value] = Storage(len(buffers), kind.dtype, kind.shape, strides)
    for value in node.inputs:
        part = graph.producer(value)
        if part is not None:
            whole = buffers[part.inputs[0]]
            start = part.attrs["start"]
            assert isinstance(start, int)
            shape = graph.type(value).shape
            buffers[value] = Storage(whole.buffer, whole.dtype, shape, whole.strides, start)
    inputs, outputs = (
        tuple(buffers[value] for value in values) for values in (node.inputs, node.outputs)
    )
    return Call(graph, node, target, inputs, outputs)
