"""What fusec cannot compute itself, as small ONNX models for onnxruntime.

A node of an ONNX file is put into a model of its own.  An ATen node is exported by PyTorch's own
exporter, on that node alone.  An operation of fusec that no kernel computes is written with the
ONNX operators that mean the same.  Tensors carry the names of the graph's values.

onnxruntime-rocm 1.22.2, the last release with a ROCm provider, fixes the limits: opset 20, no
arithmetic in bf16 on the CPU (tensors are widened at the border of the model), no 8-bit floats
(it crashes the process), and no machine code for gfx950.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fusec import symbolic
from fusec.diagnostics import InputError, UnsupportedError
from fusec.frontend.onnx_ops.tensors import DTYPE_OF, ELEMENT_OF
from fusec.ir.graph import Graph, Node
from fusec.ir.ops import is_opaque
from fusec.ir.types import (
    Attr,
    TensorType,
    bool_attr,
    dim_attr,
    float_attr,
    int_attr,
    ints_attr,
)
from fusec.rewrite.guard import Rejection
from fusec.symbolic import Dim

OPSET = 20
"""The newest that onnxruntime 1.22.2 runs."""

IR_VERSION = 10

_FLOAT8 = frozenset(("f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f4e2m1x2", "e8m0"))

NEW_TYPES_ONLY = frozenset(
    (
        "Acos Acosh Asin Asinh Atan Atanh AveragePool Bernoulli Cast CastLike Constant "
        "ConstantOfShape Conv ConvTranspose Cos Cosh DeformConv Det Dropout Elu EyeLike "
        "Flatten GRU GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample HardSigmoid "
        "HardSwish Identity If InstanceNormalization LSTM Loop LpNormalization LpPool MaxPool "
        "MaxRoiPool MaxUnpool Mish Multinomial NegativeLogLikelihoodLoss Pad QLinearMatMul RNN "
        "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Reshape RoiAlign Round Scan "
        "Selu Shape Sin Sinh Size Softplus Softsign SplitToSequence Squeeze Tan ThresholdedRelu "
        "TopK Transpose Unsqueeze"
    ).split()
)
"""Operators whose versions after `OPSET` only take more element types."""


@dataclass(frozen=True, slots=True)
class ResidualModel:
    """A part of a model that onnxruntime runs.

    Attributes:
        data: the ONNX model; equal for equal nodes.
        inputs: names of its inputs: values of the graph, each once.
        outputs: names of its outputs: values of the graph.
        reason: why fusec does not compute it.
    """

    data: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reason: str


def opset_rejection(node: Node) -> Rejection | None:
    """Why the ONNX operator of `node` is too new for onnxruntime: the guard `ort.opset`."""
    if not node.op.startswith("onnx."):
        return None
    for domain, op, version in _operators(_onnx_node(node), int_attr(node.attrs, "_version")):
        since = _since(op, version, domain)
        if domain == "" and since is not None and since > OPSET and op not in NEW_TYPES_ONLY:
            reason = (
                f"`{op}` of opset {since} is newer than {OPSET}, the last of onnxruntime 1.22.2"
            )
            hint = f"export the model with opset {OPSET}"
            return Rejection("ort.opset", reason, at=node.name, hint=hint)
    return None


def build_residual(graph: Graph, node: Node) -> ResidualModel:
    """A model that computes `node`.

    Args:
        graph: where the node is.
        node: an opaque node, or one of an operation that no kernel computes.

    Raises:
        UnsupportedError: onnxruntime cannot run it; the detail lists operation, node and reason.
        InputError: a package that it takes is not installed.
    """
    try:
        return _build(graph, node)
    except UnsupportedError as error:
        detail = (
            f"operation: {node.origin.op or node.op}",
            f"node: {node.name}",
            f"reason: {error}",
        )
        raise UnsupportedError(
            f"neither fusec nor onnxruntime can run `{node.op}`",
            at=node.origin.path or node.origin.source or node.name,
            detail=(*detail, *error.detail),
            hint=error.hint or "change the model so that it does without this operation",
        ) from error


def _build(graph: Graph, node: Node) -> ResidualModel:
    if importlib.util.find_spec("onnx") is None:
        hint = "pip install 'fusec[onnx]'"
        raise InputError("a part left to onnxruntime needs the package `onnx`", hint=hint)
    for value in (*node.inputs, *node.outputs):
        if graph.type(value).dtype in _FLOAT8:
            raise UnsupportedError(f"onnxruntime cannot compute with `{graph.type(value).dtype}`")
    rejection = opset_rejection(node)
    if rejection is not None:
        raise UnsupportedError(rejection.reason, hint=rejection.hint)
    if node.op.startswith("onnx."):
        why = node.attrs.get("_why")
        reason = why if isinstance(why, str) else f"fusec does not know `{node.op}`"
        model = _of_onnx(graph, node)
    elif is_opaque(node.op):
        reason = f"fusec does not know `{node.op}`"
        model = _of_aten(graph, node)
    else:
        reason = f"no kernel computes `{node.op}`"
        model = _of_core(graph, node)
    data = model.SerializeToString(deterministic=True)
    _check(data)
    inputs = tuple(dict.fromkeys(node.inputs))
    return ResidualModel(data, inputs, node.outputs, reason)


def _check(data: bytes) -> None:
    """Let onnxruntime load the model, where it is installed.

    Raises:
        UnsupportedError: it refuses, as it would when the artifact is loaded.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return
    import onnxruntime

    state = onnxruntime.capi.onnxruntime_pybind11_state
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    errors = (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoModel,
        state.NotImplemented,
        state.RuntimeException,
    )
    try:
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except errors as error:
        line = next(iter(str(error).splitlines()), "no reason given")
        raise UnsupportedError(f"onnxruntime refuses it: {line[:300]}") from error


# --- models ---------------------------------------------------------------------------------


class _Model:
    """One ONNX model under construction; bf16 exists at its border alone."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph, self.node = graph, node
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._count = 0
        self._inside: dict[str, str] = {}
        taken = {*node.inputs, *node.outputs}
        self._prefix = "t"
        while any(name.startswith(self._prefix) for name in taken):
            self._prefix += "_"

    def name(self) -> str:
        """A name that the graph does not use."""
        self._count += 1
        return f"{self._prefix}{self._count}"

    def add(self, op: str, inputs: Sequence[str], *, outputs: int = 1, **attrs: Any) -> list[str]:
        """Add a node."""
        from onnx import helper

        made = [self.name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), made, **attrs))
        return made

    def one(self, op: str, *inputs: str, **attrs: Any) -> str:
        """Add a node with one result."""
        return self.add(op, inputs, **attrs)[0]

    def integers(self, items: Sequence[int]) -> str:
        """A 1-d constant of integers."""
        return self._tensor("i64", (len(items),), list(items))

    def integer(self, item: int) -> str:
        """A 0-d integer."""
        return self._tensor("i64", (), [item])

    def number(self, item: float, dtype: str) -> str:
        """A 0-d number."""
        return self._tensor(dtype, (), [item])

    def _tensor(self, dtype: str, shape: tuple[int, ...], items: list[Any]) -> str:
        from onnx import helper

        name = self.name()
        self.constants.append(helper.make_tensor(name, ELEMENT_OF[dtype], shape, items))
        return name

    def operand(self, value: str) -> str:
        """The value inside the model: widened if it is bf16."""
        if self.graph.type(value).dtype != "bf16":
            return value
        if value not in self._inside:
            self._inside[value] = self.one("Cast", value, to=ELEMENT_OF["f32"])
        return self._inside[value]

    def give(self, value: str, name: str) -> None:
        """Make `name` the output `value`."""
        from onnx import helper

        if self.graph.type(value).dtype == "bf16":
            node = helper.make_node("Cast", [name], [value], to=ELEMENT_OF["bf16"])
        else:
            node = helper.make_node("Identity", [name], [value])
        self.nodes.append(node)

    def cast(self, name: str, dtype: str) -> str:
        """Another element type."""
        return self.one("Cast", name, to=ELEMENT_OF[dtype])

    def proto(self, domains: Mapping[str, int]) -> Any:
        """The whole model.

        Args:
            domains: versions of operators' domains; ONNX's own has `OPSET` where none is given.
        """
        from onnx import helper

        inputs = [_info(name, self.graph.type(name)) for name in dict.fromkeys(self.node.inputs)]
        outputs = [_info(name, self.graph.type(name)) for name in self.node.outputs]
        graph = helper.make_graph(self.nodes, "residual", inputs, outputs, self.constants)
        versions = {"": OPSET, **domains}
        opsets = [helper.make_opsetid(*item) for item in sorted(versions.items())]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="fusec"
        )


def _info(name: str, kind: TensorType) -> Any:
    from onnx import helper

    shape = [_dim_text(dim) for dim in kind.shape]
    return helper.make_tensor_value_info(name, ELEMENT_OF[kind.dtype], shape)


def _dim_text(dim: Dim) -> Any:
    if isinstance(dim, int):
        return dim
    return str(dim) if dim == symbolic.symbol(min(symbolic.symbols_of(dim))) else None


# --- nodes of ONNX files --------------------------------------------------------------------


def _onnx_node(node: Node) -> Any:
    """The ONNX node that an opaque node was, without names of operands; see `onnx_ops.opaque`."""
    import onnx
    from onnx import helper

    domain, op = _onnx_op(node)
    made = helper.make_node(op, [], [], domain=domain)
    for name, value in node.attrs.items():
        if not name.startswith("_"):
            held = list(value) if isinstance(value, tuple) else value
            made.attribute.append(helper.make_attribute(name, held))
    protos = node.attrs.get("_protos", ())
    for text in protos if isinstance(protos, tuple) else ():
        attribute = onnx.AttributeProto()
        attribute.ParseFromString(bytes.fromhex(str(text)))
        made.attribute.append(attribute)
    return made


def _onnx_op(node: Node) -> tuple[str, str]:
    domain, _, op = node.op.removeprefix("onnx.").rpartition(".")
    return ("" if domain == "ai" else domain), op


def _operators(node: Any, version: int) -> Iterator[tuple[str, str, int]]:
    """Domain, name and version of the operator of a node and of those in its subgraphs."""
    yield node.domain, node.op_type, version
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.HasField("g") else []
        for graph in (*graphs, *attribute.graphs):
            for inner in graph.node:
                yield from _operators(inner, version)


def _since(op: str, version: int, domain: str) -> int | None:
    import onnx

    try:
        return int(onnx.defs.get_schema(op, version, domain).since_version)
    except onnx.defs.SchemaError:
        return None


def _may_be_left_out(op: str, version: int, domain: str, index: int) -> bool:
    """Whether onnxruntime runs `op` without result `index`; those of `If` and `Loop` it needs."""
    import onnx

    try:
        outputs = onnx.defs.get_schema(op, version, domain).outputs
    except onnx.defs.SchemaError:
        return True
    option = outputs[min(index, len(outputs) - 1)].option
    return bool(option == onnx.defs.OpSchema.FormalParameterOption.Optional)


def _of_onnx(graph: Graph, node: Node) -> Any:
    model = _Model(graph, node)
    made = _onnx_node(node)
    domain, op = _onnx_op(node)
    version = int_attr(node.attrs, "_version")
    for attribute in made.attribute:
        if attribute.name in ("to", "dtype") and DTYPE_OF.get(attribute.i) == "bf16":
            attribute.i = ELEMENT_OF["f32"]
    operands = iter(node.inputs)
    for letter in str(node.attrs["_inputs"]):
        made.input.append("" if letter == "-" else model.operand(next(operands)))
    captures = node.attrs.get("_captures", ())
    for outer in captures if isinstance(captures, tuple) else ():
        _capture(model, str(outer), model.operand(next(operands)))
    results = iter(node.outputs)
    given: list[tuple[str, str]] = []
    for index, letter in enumerate(str(node.attrs["_outputs"])):
        needed = letter != "-" or not _may_be_left_out(op, version, domain, index)
        made.output.append(model.name() if needed else "")
        if letter != "-":
            given.append((next(results), made.output[-1]))
    model.nodes.append(made)
    for value, name in given:
        model.give(value, name)
    return model.proto({domain: version if domain else min(version, OPSET)})


def _capture(model: _Model, outer: str, inner: str) -> None:
    """Give a value the name under which a subgraph reads it."""
    from onnx import helper

    if outer == inner:
        return
    if outer in (*model.node.inputs, *model.node.outputs):
        raise UnsupportedError(f"two values are called `{outer}`")
    model.nodes.append(helper.make_node("Identity", [inner], [outer]))


# --- ATen -----------------------------------------------------------------------------------

_SAMPLES = (5, 7, 11, 13, 17, 19, 23)
_TORCH_NAMES = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "float32",  # widened at the border
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "bool": "bool",
}


def _of_aten(graph: Graph, node: Node) -> Any:
    if importlib.util.find_spec("torch") is None:
        hint = "pip install 'fusec[torch]'"
        raise InputError(f"exporting `{node.op}` needs the package `torch`", hint=hint)
    if importlib.util.find_spec("onnxscript") is None:
        hint = "pip install onnxscript"
        raise InputError(f"exporting `{node.op}` needs the package `onnxscript`", hint=hint)
    exported = _exported(graph, node)
    model = _Model(graph, node)
    names: dict[str, str] = {}
    operands = dict.fromkeys(node.inputs)
    for info, value in zip(exported.graph.input, operands, strict=True):
        names[info.name] = model.operand(value)
    if len(exported.graph.output) != len(node.outputs):
        raise UnsupportedError("PyTorch's exporter gives another number of results")
    inner = set(names)
    for part in exported.graph.initializer:
        inner.add(part.name)
    for call in exported.graph.node:
        inner.update(name for name in call.output if name)
    for name in sorted(inner - names.keys()):
        names[name] = model.name()
    for part in exported.graph.initializer:
        part.name = names[part.name]
        model.constants.append(part)
    for made in exported.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in made.attribute):
            raise UnsupportedError("PyTorch's exporter gives a model with subgraphs")
        renamed = [names[name] if name else "" for name in made.input]
        results = [names[name] if name else "" for name in made.output]
        del made.input[:], made.output[:], made.metadata_props[:]
        made.input.extend(renamed)
        made.output.extend(results)
        made.name = made.doc_string = ""
        model.nodes.append(made)
    for value, info in zip(node.outputs, exported.graph.output, strict=True):
        name = names[info.name]
        if DTYPE_OF.get(info.type.tensor_type.elem_type) not in (graph.type(value).dtype, "f32"):
            name = model.cast(name, graph.type(value).dtype)
        model.give(value, name)
    return model.proto({entry.domain: entry.version for entry in exported.opset_import})


def _exported(graph: Graph, node: Node) -> Any:
    """The model that `torch.onnx` makes of the one call, compared with the call itself."""
    import torch
    from onnx import inliner

    region = _region(node)
    values = list(dict.fromkeys(node.inputs))
    samples, dynamic = _samples(graph, values)
    try:
        with _quietly():
            wanted = region(*samples)
            program = torch.onnx.export(
                region,
                samples,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=({"unique": dynamic} if any(dynamic) else None),
                verbose=False,
            )
    except (
        torch.onnx.OnnxExporterError,
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        IndexError,
    ) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        why = lines[0][:200] if lines else type(cause).__name__
        raise UnsupportedError(f"PyTorch's exporter refuses it: {why}") from error
    if program is None:
        raise UnsupportedError("PyTorch's exporter gives no model")
    model = program.model_proto
    if model.functions:
        model = inliner.inline_local_functions(model)
    _compare(model, samples, wanted if isinstance(wanted, tuple) else (wanted,))
    return model


def _region(node: Node) -> Any:
    """A module whose forward is the call of `node`; each distinct operand is given once."""
    import torch

    function = _aten_function(node)
    values = list(dict.fromkeys(node.inputs))
    order = [values.index(value) for value in node.inputs]
    args, kwargs = node.attrs.get("args", ()), node.attrs.get("kwargs", ())
    named = [arg.name for arg in function._schema.arguments]

    def resolved(value: Attr, tensors: Sequence[Any], name: str = "") -> Any:
        if isinstance(value, str) and value.startswith("%"):
            return tensors[int(value[1:])]
        if isinstance(value, tuple):
            return [resolved(item, tensors, name) for item in value]
        if isinstance(value, str):
            return _torch_word(value, name)
        if isinstance(value, symbolic.Expr):
            raise UnsupportedError(f"an argument is the size `{value}`")
        return value

    class Region(torch.nn.Module):
        def forward(self, *unique: Any) -> Any:
            tensors = [unique[index] for index in order]
            positional = args if isinstance(args, tuple) else ()
            given = [resolved(v, tensors, n) for v, n in zip(positional, named, strict=False)]
            words: dict[str, Any] = {}
            for pair in kwargs if isinstance(kwargs, tuple) else ():
                if isinstance(pair, tuple):
                    words[str(pair[0])] = resolved(pair[1], tensors, str(pair[0]))
            result = function(*given, **words)
            return tuple(result) if isinstance(result, list | tuple) else result

    return Region().eval()


def _compare(model: Any, samples: Sequence[Any], wanted: Sequence[Any]) -> None:
    """Check that the exported call computes what PyTorch does; not all of its rules are right.

    Raises:
        UnsupportedError: it does not.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return
    import numpy as np
    import onnxruntime

    data = model.SerializeToString()
    _check(data)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    feed = {name: sample.numpy() for name, sample in zip(names, samples, strict=True)}
    state = onnxruntime.capi.onnxruntime_pybind11_state
    try:
        got = session.run(None, feed)
    except (state.Fail, state.InvalidArgument, state.RuntimeException) as error:
        line = next(iter(str(error).splitlines()), "no reason given")
        raise UnsupportedError(f"what PyTorch's exporter gives fails: {line[:200]}") from error
    for result, reference in zip(got, wanted, strict=True):
        expected = reference.detach().numpy()
        same = result.shape == expected.shape and np.allclose(
            result, expected, rtol=1e-3, atol=1e-4, equal_nan=True
        )
        if not same:
            raise UnsupportedError("what PyTorch's exporter gives computes something else")


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter's own notes off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _aten_function(node: Node) -> Any:
    import torch

    parts = node.op.removeprefix("torch.").split(".")
    if len(parts) not in (2, 3):
        raise UnsupportedError(f"`{node.op}` is no operation of PyTorch")
    found: Any = torch.ops
    try:
        for part in (*parts, "default")[:3]:
            found = getattr(found, part)
    except AttributeError as error:
        hint = "import the package that defines it before compiling"
        raise UnsupportedError(f"PyTorch has no operation `{node.op}`", hint=hint) from error
    if not isinstance(found, torch._ops.OpOverload):
        raise UnsupportedError(f"`{node.op}` is no operation of PyTorch")
    return found


def _torch_word(value: str, name: str) -> Any:
    import torch

    if name in ("dtype", "out_dtype"):
        return getattr(torch, _TORCH_NAMES.get(value, value))
    if name == "layout":
        return getattr(torch, value)
    if name == "memory_format":
        return getattr(torch, value)
    return value


def _samples(graph: Graph, values: Sequence[str]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Small operands to export with, and which of their sizes stay open."""
    import torch

    symbols: dict[str, int] = {}
    for number, (name, (least, most)) in enumerate(sorted(graph.symbols.items())):
        wanted = max(_SAMPLES[number % len(_SAMPLES)], least)
        symbols[name] = wanted if most is None else min(wanted, most)
    samples: list[Any] = []
    dynamic: list[Any] = []
    for value in values:
        kind = graph.type(value)
        element = _TORCH_NAMES.get(kind.dtype)
        if element is None:
            raise UnsupportedError(f"onnxruntime has no `{kind.dtype}`")
        shape = [symbolic.evaluate(dim, symbols) for dim in kind.shape]
        samples.append(_sample(shape, getattr(torch, element)))
        open_axes = [axis for axis, dim in enumerate(kind.shape) if not isinstance(dim, int)]
        dynamic.append({axis: torch.export.Dim.DYNAMIC for axis in open_axes} or None)
    return tuple(samples), tuple(dynamic)


def _sample(shape: Sequence[int], dtype: Any) -> Any:
    """Floats on both sides of zero; integers that are inside any axis."""
    import torch

    if not dtype.is_floating_point:
        return torch.ones(tuple(shape), dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tuple(shape), generator=generator).to(dtype)


# --- fusec's own operations -----------------------------------------------------------------

_Writer = Callable[[_Model, Node, list[str]], "Sequence[str] | str"]


def _of_core(graph: Graph, node: Node) -> Any:
    writer = _WRITERS.get(node.op)
    if writer is None:
        raise UnsupportedError(f"no kernel computes `{node.op}`, and no ONNX operator means it")
    model = _Model(graph, node)
    made = writer(model, node, [model.operand(value) for value in node.inputs])
    results = [made] if isinstance(made, str) else list(made)
    for value, name in zip(node.outputs, results, strict=True):
        model.give(value, name)
    return model.proto({})


def _rank(model: _Model, node: Node, index: int = 0) -> int:
    return model.graph.type(node.inputs[index]).rank


def _axis(model: _Model, node: Node) -> int:
    return int_attr(node.attrs, "axis") % _rank(model, node)


def _conv(model: _Model, node: Node, operands: list[str]) -> str:
    padding = ints_attr(node.attrs, "padding")
    return model.one(
        "Conv",
        *operands,
        strides=ints_attr(node.attrs, "stride"),
        pads=(*padding, *padding),
        dilations=ints_attr(node.attrs, "dilation"),
        group=int_attr(node.attrs, "groups"),
    )


def _linear(model: _Model, node: Node, operands: list[str]) -> str:
    weight = model.one("Transpose", operands[1], perm=(1, 0))
    result = model.one("MatMul", operands[0], weight)
    return result if len(operands) == 2 else model.one("Add", result, operands[2])


def _reduce(op: str) -> _Writer:
    def writer(model: _Model, node: Node, operands: list[str]) -> str:
        axes = model.integers(ints_attr(node.attrs, "axes"))
        keep = int(bool_attr(node.attrs, "keepdims"))
        return model.one(op, operands[0], axes, keepdims=keep)

    return writer


def _arg(op: str) -> _Writer:
    def writer(model: _Model, node: Node, operands: list[str]) -> str:
        keep = int(bool_attr(node.attrs, "keepdims"))
        return model.one(op, operands[0], axis=_axis(model, node), keepdims=keep)

    return writer


def _along(op: str) -> _Writer:
    def writer(model: _Model, node: Node, operands: list[str]) -> str:
        return model.one(op, *operands, axis=_axis(model, node))

    return writer


def _cumsum(model: _Model, node: Node, operands: list[str]) -> str:
    return model.one("CumSum", operands[0], model.integer(_axis(model, node)))


def _topk(model: _Model, node: Node, operands: list[str]) -> list[str]:
    k = dim_attr(node.attrs, "k")
    if not isinstance(k, int):
        raise UnsupportedError(f"the size `{k}` of a `topk` is dynamic")
    largest = int(bool_attr(node.attrs, "largest"))
    axis = _axis(model, node)
    return model.add(
        "TopK", (operands[0], model.integers((k,))), outputs=2, axis=axis, largest=largest
    )


def _sort(model: _Model, node: Node, operands: list[str]) -> list[str]:
    axis = _axis(model, node)
    size = model.one("Shape", operands[0], start=axis, end=axis + 1)
    largest = int(bool_attr(node.attrs, "descending"))
    return model.add("TopK", (operands[0], size), outputs=2, axis=axis, largest=largest)


_SCATTERS = {"none": "none", "add": "add", "multiply": "mul", "amax": "max", "amin": "min"}


def _scatter(model: _Model, node: Node, operands: list[str]) -> str:
    reduction = _SCATTERS[str(node.attrs.get("reduce") or "none")]
    x, index, source = operands
    index = model.cast(index, "i64")
    return model.one(
        "ScatterElements", x, index, source, axis=_axis(model, node), reduction=reduction
    )


def _coordinates(model: _Model, indices: Sequence[str]) -> str:
    """Index operands that broadcast, as one list of coordinates."""
    parts = [model.cast(index, "i64") for index in indices]
    total = parts[0]
    for part in parts[1:]:
        total = model.one("Add", total, part)
    shape = model.one("Shape", total)
    wide = [model.one("Expand", part, shape) for part in parts]
    last = model.integers((-1,))
    return model.one("Concat", *(model.one("Unsqueeze", part, last) for part in wide), axis=-1)


def _index(model: _Model, node: Node, operands: list[str]) -> str:
    if ints_attr(node.attrs, "axes")[0] != 0:
        raise UnsupportedError("an `index` does not begin at the first axis")
    return model.one("GatherND", operands[0], _coordinates(model, operands[1:]))


def _index_put(model: _Model, node: Node, operands: list[str]) -> str:
    if ints_attr(node.attrs, "axes")[0] != 0:
        raise UnsupportedError("an `index_put` does not begin at the first axis")
    place = _coordinates(model, operands[2:])
    shape = model.one("Shape", model.one("GatherND", operands[0], place))
    values = model.one("Expand", operands[1], shape)
    reduction = "add" if bool_attr(node.attrs, "accumulate") else "none"
    return model.one("ScatterND", operands[0], place, values, reduction=reduction)


def _pad(model: _Model, node: Node, operands: list[str]) -> str:
    pads = [*_known(node, "low"), *_known(node, "high")]
    kind = model.graph.type(node.inputs[0])
    dtype = "f32" if kind.dtype == "bf16" else kind.dtype
    value = model.number(float_attr({"value": _number(node.attrs.get("value", 0))}, "value"), dtype)
    return model.one("Pad", operands[0], model.integers(pads), value)


def _known(node: Node, name: str) -> tuple[int, ...]:
    return ints_attr(node.attrs, name)


def _number(value: Attr) -> Attr:
    return float(value) if isinstance(value, bool) else value


def _layer_norm(model: _Model, node: Node, operands: list[str]) -> str:
    if not bool_attr(node.attrs, "has_weight"):
        raise UnsupportedError("a `layer_norm` without a weight")
    return model.one(
        "LayerNormalization", *operands, axis=-1, epsilon=float_attr(node.attrs, "eps")
    )


_WRITERS: dict[str, _Writer] = {
    "argmax": _arg("ArgMax"),
    "argmin": _arg("ArgMin"),
    "conv": _conv,
    "cumsum": _cumsum,
    "gather": _along("GatherElements"),
    "index": _index,
    "index_put": _index_put,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "log_softmax": _along("LogSoftmax"),
    "logsumexp": _reduce("ReduceLogSumExp"),
    "matmul": lambda model, node, operands: model.one("MatMul", *operands),
    "pad": _pad,
    "reduce_max": _reduce("ReduceMax"),
    "reduce_mean": _reduce("ReduceMean"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_sum": _reduce("ReduceSum"),
    "scatter": _scatter,
    "softmax": _along("Softmax"),
    "sort": _sort,
    "take": _along("Gather"),
    "topk": _topk,
}

__all__ = ["NEW_TYPES_ONLY", "OPSET", "ResidualModel", "build_residual", "opset_rejection"]
