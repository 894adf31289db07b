"""conv and conv_epilogue on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, int_attr, ints_attr, str_attr
from fusec.kernels.cpu import (
    ACTIVATIONS,
    any_float_kernel,
    cpp_kernel,
    flags,
    float_kernel,
    operands,
)
from fusec.kernels.launch import Call, Launch, Layout, Storage
from fusec.symbolic import Dim, product
from fusec.target import Target

AXES = 3
"""Spatial axes that the kernel walks."""


BIAS_SAME, BIAS_F32 = 1, 2
"""Kinds of a bias, by its dtype: that of x, or f32."""


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    axes = graph.type(node.inputs[0]).rank - 2
    if axes > AXES:
        return f"it takes up to {AXES} spatial axes, not {axes}"
    if node.op == "conv":
        return any_float_kernel(graph, node, target)
    return float_kernel(graph, node, target)


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    dense: Layout = "contiguous"
    return ("strided", *(dense,) * len(node.inputs))


def _three(values: tuple[Dim, ...], fill: int) -> tuple[Dim, ...]:
    return (*(fill,) * (AXES - len(values)), *values)


def _is_pointwise(kernel: Sequence[Dim], call: Call) -> bool:
    """Whether each output position reads the input position of the same number."""
    steps = (*kernel, *ints_attr(call.attrs, "stride"))
    return all(step == 1 for step in steps) and not any(ints_attr(call.attrs, "padding"))


def _one_axis(x: Storage) -> Storage | None:
    """`x` [B, C, axes...] with its positions along one axis; `None` if they lie unevenly apart."""
    shape, strides = x.shape[2:], x.strides[2:]
    inner = zip(shape[1:], strides[1:], strides, strict=False)
    if any(step * size != outer for size, step, outer in inner):
        return None
    return replace(x, shape=(*x.shape[:2], product(shape)), strides=(*x.strides[:2], strides[-1]))


def _conv(call: Call) -> Launch:
    return _launch(call, (BIAS_SAME if len(call.inputs) == 3 else 0, 0, 0, ACTIVATIONS["none"]))


def _conv_epilogue(call: Call) -> Launch:
    has_scale, has_bias, has_residual = (
        bool_attr(call.attrs, name) for name in ("has_scale", "has_bias", "has_residual")
    )
    activation = ACTIVATIONS[str_attr(call.attrs, "activation")]
    return _launch(call, (BIAS_F32 if has_bias else 0, *flags(has_scale, has_residual), activation))


def _launch(call: Call, epilogue: tuple[Dim, ...]) -> Launch:
    x, out = call.inputs[0], call.outputs[0]
    weight = call.input_type(1)
    attrs = call.attrs
    if _is_pointwise(weight.shape[2:], call):
        read, written = _one_axis(x), _one_axis(out)
        if read is not None and written is not None:
            x, out = read, written
    params = (
        *(x.shape[0], x.shape[1], weight.shape[0], int_attr(attrs, "groups")),
        *_three(x.shape[2:], 1),
        *_three(out.shape[2:], 1),
        *_three(weight.shape[2:], 1),
        *_three(ints_attr(attrs, "stride"), 1),
        *_three(ints_attr(attrs, "padding"), 0),
        *_three(ints_attr(attrs, "dilation"), 1),
        *x.strides[:2],
        *_three(x.strides[2:], 0),
        *epilogue,
    )
    return Launch(f"fusec_conv_{x.dtype}", operands(call), params)


KERNELS = (
    cpp_kernel("conv", _conv, supports=_supports, layouts=_layouts),
    cpp_kernel(
        "conv_epilogue", _conv_epilogue, supports=_supports, layouts=_layouts, source="conv"
    ),
)
