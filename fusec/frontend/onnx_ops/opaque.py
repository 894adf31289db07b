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

from collections.abc import Mapping
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
    declared: Mapping[str, TensorType],
) -> tuple[Value | None, ...]:
    """Add the node; its types come from ONNX's own shape inference, else from the file.

    Args:
        ctx: the graph under construction.
        call: the node of the file.
        why: why it has no translation.
        captures: values that its subgraphs read, by their names in the file.
        declared: types that the file itself declares.

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
    declared: Mapping[str, TensorType],
) -> list[TensorType]:
    inferred = _inferred(ctx, call, captures)
    types: list[TensorType] = []
    for name in call.outputs:
        if not name:
            continue
        kind = inferred.get(name) or declared.get(name)
        if kind is None:
            raise UnsupportedError(
                f"nothing tells the type of `{name}`, which `{call.op}` makes ({why})",
                hint="run onnx.shape_inference or onnxruntime's symbolic shape inference first",
            )
        types.append(kind)
    return types


def _inferred(ctx: Context, call: Call, captures: Mapping[str, Value]) -> dict[str, TensorType]:
    """Types of the results by onnx's inference over the node alone."""
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
    found: dict[str, TensorType] = {}
    for info in (*model.graph.output, *model.graph.value_info):
        kind = value_type(ctx, info, f"{call.op.lower()}_size")
        if kind is not None:
            found.setdefault(info.name, kind)
    return found


def _info(name: str, kind: TensorType) -> Any:
    from onnx import helper

    shape = [dim if isinstance(dim, int) else str(dim) for dim in kind.shape]
    return helper.make_tensor_value_info(name, ELEMENT_OF[kind.dtype], shape)


def value_type(ctx: Context, info: Any, base: str) -> TensorType | None:
    """The type that a `ValueInfoProto` declares; unknown sizes become new symbols called `base`."""
    tensor = info.type.tensor_type
    if not tensor.elem_type or not tensor.HasField("shape"):
        return None
    dtype = dtype_of(tensor.elem_type, f"`{info.name}`")
    shape: list[Dim] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value"):
            shape.append(int(dim.dim_value))
        else:
            shape.append(_named(ctx, str(dim.dim_param), base))
    return TensorType(dtype, tuple(shape))


def _named(ctx: Context, text: str, base: str) -> Dim:
    if text:
        try:
            dim = symbolic.parse_dim(text)
        except ParseError:
            return ctx.fresh_symbol(base)
        if symbolic.symbols_of(dim) <= ctx.graph.symbols.keys():
            return dim
    return ctx.fresh_symbol(base)
