"""attention on the CPU."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, float_attr, int_attr
from fusec.kernels.cpu import any_float_kernel, cpp_kernel, flags, operands, precision_param
from fusec.kernels.launch import Call, Launch, Layout, Param, Storage
from fusec.target import Target


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    rest = [graph.type(value).dtype for value in node.inputs[3:]]
    dtype = graph.type(node.inputs[0]).dtype
    if bool_attr(node.attrs, "has_mask") and rest.pop(0) not in ("bool", "f32", dtype):
        return "its mask is bool, f32, or of the dtype of the queries"
    if bool_attr(node.attrs, "has_sinks") and rest.pop(0) not in ("f32", dtype):
        return "its sinks are f32 or of the dtype of the queries"
    return any_float_kernel(graph, node, target)


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    rows: Layout = "rows"
    layouts: list[Layout] = [rows, rows, rows]
    if bool_attr(node.attrs, "has_mask"):
        layouts.append("strided")
    if bool_attr(node.attrs, "has_sinks"):
        layouts.append("contiguous")
    if bool_attr(node.attrs, "has_key_padding"):
        layouts.append("strided")
    return (*layouts, rows)


def _broadcast_strides(mask: Storage) -> list[Param]:
    """Strides of a mask expanded to rank 4: 0 where it has size 1 or no axis."""
    strides: list[Param] = [0] * (4 - len(mask.shape))
    pairs = zip(mask.shape, mask.strides, strict=True)
    return strides + [0 if size == 1 else step for size, step in pairs]


def _attention(call: Call) -> Launch:
    q, k, v, *rest = call.inputs
    out = call.outputs[0]
    attrs = call.attrs
    sinks_kind = 0
    mask_params: list[Param] = [0, 0, 0, 0, 0]
    padding: list[Param] = [0, 0, 0]
    if bool_attr(attrs, "has_mask"):
        mask = rest.pop(0)
        kind = {"bool": 1, q.dtype: 2}.get(mask.dtype, 3)
        mask_params = [kind, *_broadcast_strides(mask)]
    if bool_attr(attrs, "has_sinks"):
        sinks_kind = 2 if rest.pop(0).dtype == q.dtype else 3
    if bool_attr(attrs, "has_key_padding"):
        padding = [1, *rest.pop(0).strides]
    softcap = attrs.get("softcap")
    window, chunk = (
        -1 if attrs.get(name) is None else int_attr(attrs, name) for name in ("window", "chunk")
    )
    params = (
        *(q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3]),
        *(step for storage in (q, k, v, out) for step in storage.strides[:3]),
        float_attr(attrs, "scale"),
        0.0 if softcap is None else float_attr(attrs, "softcap"),
        *flags(bool_attr(attrs, "causal")),
        window,
        chunk,
        *mask_params,
        sinks_kind,
        *padding,
        precision_param(call.target),
    )
    return Launch(f"fusec_attention_{q.dtype}", operands(call), params)


KERNELS = (cpp_kernel("attention", _attention, supports=_supports, layouts=_layouts),)
