"""Operators without a translation: one opaque node that says all it takes to run it elsewhere.

The attributes of such a node, `onnx.<domain>.<Op>`, are those of the ONNX node under their own
names, and under names that begin with an underscore what else is needed:

* `_version`: the version of the node's domain that the file imports;
* `_inputs`: one word, a letter an operand of the ONNX node: `x` given, `-` left out;
* `_outputs`: the same for results; those left out have no value;
* `_captures`: names of the values of the surrounding graph that a subgraph reads; they are the
  node's last operands;
* `_protos`: attributes that are tensors or graphs, as protocol buffers in hexadecimal;
* `_why`: why it has no translation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusec import symbolic
from fusec.diagnostics import InputError, ParseError, UnsupportedError
from fusec.frontend.onnx_ops.base import FOLD_LIMIT, Call, Context, Value
from fusec.frontend.onnx_ops.tensors import ELEMENT_OF, dtype_of
from fusec.ir.types import Attr, TensorType
from fusec.symbolic import Dim

MAX_PROTO_BYTES = 1 << 20
_PLAIN = (int, float, str)


def opaque_name(domain: str, op: str) -> str:
    """The name of the opaque operation."""
    return f"onnx.{domain or 'ai'}.{op}"


def add_opaque(
    ctx: Context,
    call: Call,
    why: str,
    captures: Mapping[str, Value],
    declared: Mapping[str, Any],
) -> tuple[Value | None, ...]:
    """Add the node; its types come from ONNX's own shape inference, the rest from the file.

    Args:
        ctx: the graph under construction.
        call: the node of the file.
        why: why it has no translation.
        captures: values that its subgraphs read, by their names in the file.
        declared: what the file itself declares of values, each a `ValueInfoProto`.

    Raises:
        UnsupportedError: nothing tells a result's type.
    """
    given = [value for value in call.inputs if value is not None]
    if any(value.items is not None for value in given):
        raise UnsupportedError(f"`{call.op}` takes a sequence of tensors")
    if any(value.four_bits for value in (*given, *captures.values())):
        raise UnsupportedError(f"`{call.op}` takes 4-bit integers ({why})")
    wanted = [name for name in call.outputs if name]
    types = _types(ctx, call, why, captures, declared)
    attrs = _attributes(call, why, captures)
    operands = [ctx.materialise(value) for value in (*given, *captures.values())]
    node = ctx.graph.add(
        opaque_name(call.domain, call.op),
        operands,
        attrs,
        names=_names(ctx, wanted),
        types=types,
        origin=ctx.origin,
    )
    made = iter(node.outputs)
    return tuple(
        Value(ctx.graph.type(name), name) if wanted_name and (name := next(made)) else None
        for wanted_name in call.outputs
    )


def _names(ctx: Context, wanted: list[str]) -> list[str]:
    names: list[str] = []
    for base in wanted:
        name = ctx.graph.fresh(base)
        while name in names:
            name = ctx.graph.fresh(f"{name}_")
        names.append(name)
    return names


def _attributes(call: Call, why: str, captures: Mapping[str, Value]) -> dict[str, Attr]:
    attrs: dict[str, Attr] = {}
    protos: list[Attr] = []
    total = 0
    for attribute in sorted(call.proto.attribute, key=lambda item: str(item.name)):
        held = _plain(call.attrs.get(attribute.name))
        if held is not None and not attribute.name.startswith("_"):
            attrs[attribute.name] = held
            continue
        data = attribute.SerializeToString(deterministic=True)
        total += len(data)
        protos.append(data.hex())
    if total > MAX_PROTO_BYTES:
        message = f"`{call.op}` carries {total} bytes of attributes"
        raise UnsupportedError(message, hint="store its tensors as weights of the model")
    attrs["_version"] = call.version
    attrs["_inputs"] = "".join("-" if value is None else "x" for value in call.inputs)
    attrs["_outputs"] = "".join("x" if name else "-" for name in call.outputs)
    attrs["_captures"] = tuple(captures)
    attrs["_protos"] = tuple(protos)
    attrs["_why"] = why
    return attrs


def _plain(value: Any) -> Attr:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(v, _PLAIN) for v in value):
        return tuple(value)
    return None


def _types(
    ctx: Context,
    call: Call,
    why: str,
    captures: Mapping[str, Value],
    declared: Mapping[str, Any],
) -> list[TensorType]:
    inferred = _inferred(ctx, call, captures)
    types: list[TensorType] = []
    for name in call.outputs:
        if not name:
            continue
        told = [infos[name] for infos in (inferred, declared) if name in infos]
        kind = _type(ctx, told, f"{call.op.lower()}_size")
        if kind is None:
            raise UnsupportedError(
                f"nothing tells the type of `{name}`, which `{call.op}` makes ({why})",
                hint="run onnx.shape_inference or onnxruntime's symbolic shape inference first",
            )
        types.append(kind)
    return types


def _inferred(ctx: Context, call: Call, captures: Mapping[str, Value]) -> dict[str, Any]:
    """What onnx infers of the results from the node alone, each a `ValueInfoProto`."""
    import onnx
    from onnx import helper, shape_inference

    node = onnx.NodeProto()
    node.CopyFrom(call.proto)
    inputs: list[Any] = []
    constants: list[Any] = []
    renamed: list[str] = []
    for index, value in enumerate(call.inputs):
        name = f"in{index}" if value is not None else ""
        renamed.append(name)
        if value is None:
            continue
        array = ctx.array(value)
        if array is not None and (array.dtype.kind in "iub" or array.size <= FOLD_LIMIT):
            flat = array.ravel().tolist()
            element = ELEMENT_OF[value.dtype]
            constants.append(helper.make_tensor(name, element, array.shape, flat))
        else:
            inputs.append(_info(name, value.type))
    del node.input[:]
    node.input.extend(renamed)
    inputs += [_info(name, value.type) for name, value in captures.items()]
    outputs = [onnx.ValueInfoProto(name=name) for name in call.outputs if name]
    graph = helper.make_graph([node], "node", inputs, outputs, constants)
    opset = [helper.make_opsetid(call.domain, call.version)]
    if call.domain:
        opset.append(helper.make_opsetid("", 20))
    model = helper.make_model(graph, opset_imports=opset)
    try:
        model = shape_inference.infer_shapes(model, check_type=False, data_prop=True)
    except (shape_inference.InferenceError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1:]
        raise InputError(f"onnx refuses `{call.op}`: {''.join(reason)[:200]}") from error
    return {info.name: info for info in (*model.graph.value_info, *model.graph.output)}


def _info(name: str, kind: TensorType) -> Any:
    from onnx import helper

    shape = [dim if isinstance(dim, int) else str(dim) for dim in kind.shape]
    return helper.make_tensor_value_info(name, ELEMENT_OF[kind.dtype], shape)


def _type(ctx: Context, infos: Sequence[Any], base: str) -> TensorType | None:
    """The type that the first `ValueInfoProto` tells that has one.

    A size that it leaves open is taken from the next; if none has it, it is a new symbol `base`.
    """
    tensors = [info.type.tensor_type for info in infos]
    tensors = [each for each in tensors if each.elem_type and each.HasField("shape")]
    if not tensors:
        return None
    dtype, rank = dtype_of(tensors[0].elem_type, f"`{infos[0].name}`"), len(tensors[0].shape.dim)
    shapes = [each.shape.dim for each in tensors if len(each.shape.dim) == rank]
    sizes: list[Dim] = []
    for told in zip(*shapes, strict=True):
        found = [size for size in (_size(ctx, dim) for dim in told) if size is not None]
        sizes.append(found[0] if found else ctx.fresh_symbol(base))
    return TensorType(dtype, tuple(sizes))


def _size(ctx: Context, dim: Any) -> Dim | None:
    """The size that the file writes, if it is known."""
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    try:
        found = ctx.known_now(symbolic.parse_dim(str(dim.dim_param)))
    except ParseError:
        return None
    return found if symbolic.symbols_of(found) <= ctx.graph.symbols.keys() else None
