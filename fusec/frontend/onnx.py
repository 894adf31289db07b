"""ONNX files: read, checked and translated into a graph.

Sizes of a dynamic model stay symbols: what the file computes from `Shape` is followed while
importing (`fusec.frontend.onnx_ops.folding`), so that it leaves no nodes.  Weights stay in the
file until they are written.  The file is data: nothing in it is executed.
"""

from __future__ import annotations

import re
from collections import ChainMap, Counter
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from fusec import symbolic
from fusec.diagnostics import (
    FusecError,
    InputError,
    ParseError,
    UnsupportedError,
    UsageError,
    VerifyError,
    read_error,
)
from fusec.frontend.dims import RESERVED, DimRequest, DimSpec, dim_specs, range_text
from fusec.frontend.onnx_ops.base import (
    HANDLERS,
    Call,
    Context,
    NotCovered,
    Restart,
    Value,
    objects,
)
from fusec.frontend.onnx_ops.folding import fold
from fusec.frontend.onnx_ops.opaque import add_opaque
from fusec.frontend.onnx_ops.tensors import (
    TensorSource,
    dtype_of,
    elements,
    read_tensor,
    shortest,
)
from fusec.ir.graph import Graph, Origin
from fusec.ir.types import TensorType
from fusec.ir.weights import from_array
from fusec.symbolic import Dim, Range

OPSETS = range(11, 26)
"""Versions of ONNX's own operators that are understood."""

MAX_IR_VERSION = 14
MAX_RESTARTS = 128
MAX_DEPTH = 16
"""How deep conditionals may nest."""

_NAMELESS = re.compile(r"(val_\d+|onnx::\w+_\d+|_inlfunc_.*|\d+)(_transposed)?$")
_STACK_LINE = re.compile(r'File "([^"<]+)", line (\d+)')
_SCOPE = re.compile(r"'([^']*)'")


def read_onnx(
    path: str | Path,
    dims: Mapping[str, DimRequest] | None = None,
    files: set[Path] | None = None,
) -> Graph:
    """The graph of an ONNX file.

    Args:
        path: the file; its external data lies in the same folder.
        dims: ranges of dynamic sizes by name; a single number makes the size static, and 0 an
            empty one, such as `past_sequence_length` of a model that takes a cache.
        files: is given the files with external data.

    Returns:
        A graph of operations that fusec knows and opaque nodes `onnx.<domain>.<Op>`.

    Raises:
        InputError: the file is not ONNX, is damaged, or reads outside its folder.
        UnsupportedError: it needs a version, a type or an operator that fusec has not.
        UsageError: `dims` names a size that the model has not, or one that it cannot have.
    """
    path = Path(path)
    model = _load(path)
    held = set() if files is None else files
    source = TensorSource(path.parent, path.resolve().parent, held)
    zero = {name for name, request in (dims or {}).items() if _is_zero(request)}
    specs = dim_specs({name: r for name, r in (dims or {}).items() if name not in zero})
    specs.update({name: DimSpec(0, 0, 0, asked=True) for name in zero})
    reader = _Reader(model, source, path, specs)
    for _ in range(MAX_RESTARTS):
        try:
            return reader.graph()
        except Restart as found:
            reader.learn(found)
    raise InputError("the sizes of the model contradict each other", at=str(path))


def _is_zero(request: DimRequest) -> bool:
    if isinstance(request, str):
        return re.fullmatch(r"0(:0){0,2}", request) is not None
    if isinstance(request, tuple):
        return bool(request) and not any(request)
    return isinstance(request, int) and request == 0


def _load(path: Path) -> Any:
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError as error:
        hint = "pip install 'fusec[onnx]'"
        raise InputError("reading `.onnx` needs the package `onnx`", hint=hint) from error
    at = str(path)
    hint = "export the model again, or copy the file again if it was cut off"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise read_error(path, error) from error
    try:
        model = onnx.ModelProto.FromString(data)
    except (DecodeError, ValueError) as error:
        message = "the file is truncated or is not an ONNX model"
        raise InputError(message, at=at, hint=hint) from error
    if not model.HasField("graph") or not model.ir_version:
        message = "the file is truncated or is not an ONNX model"
        raise InputError(message, at=at, hint=hint)
    if model.ir_version > MAX_IR_VERSION:
        message = f"the file has the IR version {model.ir_version}; {MAX_IR_VERSION} is known"
        raise UnsupportedError(message, at=at, hint="export with an older `onnx`")
    _check_opsets(model, at)
    return _inline_functions(model, at) if model.functions else model


def _inline_functions(model: Any, at: str) -> Any:
    """The model with its own functions in place of the nodes that call them."""
    from onnx import checker, inliner

    try:  # a function may be written for another opset than the model
        return inliner.inline_local_functions(model, convert_version=True)
    except (checker.ValidationError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1:]
        message = f"onnx cannot inline the functions of the model: {''.join(reason)[:300]}"
        raise InputError(message, at=at, hint="export the model without local functions") from error


def _check_opsets(model: Any, at: str) -> None:
    versions = {entry.domain: int(entry.version) for entry in model.opset_import}
    version = versions.get("", versions.get("ai.onnx"))
    if version is None:
        if all(node.domain not in ("", "ai.onnx") for node in model.graph.node):
            return
        message = "the file does not say which opset it needs"
        raise InputError(message, at=at, hint="it is truncated, or not an ONNX model")
    if version not in OPSETS:
        message = f"the file needs opset {version}; {OPSETS[0]} to {OPSETS[-1]} are known"
        hint = "convert it with `onnx.version_converter`, or export it with another opset"
        raise UnsupportedError(message, at=at, hint=hint)


class _Reader:
    """Translates one model; again, whenever it learns that two sizes are one."""

    def __init__(
        self, model: Any, source: TensorSource, path: Path, specs: Mapping[str, DimSpec]
    ) -> None:
        import fusec.frontend.onnx_ops  # noqa: F401  (enters the translations)

        self.model, self.source, self.path = model, source, path
        self.specs = dict(specs)
        self.substitutions: dict[str, Dim] = {}
        self.limits: dict[str, int] = {}
        self.declared: dict[str, None] = {}
        counts = _reads(model.graph)
        returned = {info.name for info in model.graph.output}
        self.read = frozenset(counts)
        self.single_use = frozenset(
            name for name, count in counts.items() if count == 1 and name not in returned
        )
        self.versions = {entry.domain: int(entry.version) for entry in model.opset_import}
        self.versions.setdefault("", self.versions.get("ai.onnx", OPSETS[-1]))
        self.weights = self._weights()
        for name, spec in specs.items():
            if spec.static is not None:
                self.substitutions[name] = spec.static

    def learn(self, found: Restart) -> None:
        """Take in what two sizes that are one say of the symbols."""
        for name, value in found.substitutions.items():
            spec = self.specs.get(name)
            if spec is not None and spec.asked:
                message = f"the size `{name}` is always `{value}` in this model"
                raise UsageError(message, at=str(self.path), hint=f"leave out `--dim {name}=...`")
            self.substitutions[name] = value
        for name, factor in found.factors.items():
            part, spec = f"{name}_by_{factor}", self.specs.get(name)
            if spec is not None and spec.asked:
                message = f"`{name}` has to be a multiple of {factor} in this model"
                hint = f"give `--dim {part}=...` for a range: `{name}` is {factor} times that"
                raise UsageError(message, at=str(self.path), hint=hint)
            self.substitutions[name] = factor * symbolic.symbol(part)
        for name, limit in found.limits.items():
            spec = self.specs.get(name)
            if spec is not None and spec.asked and (spec.maximum or limit + 1) > limit:
                message = f"`{name}` may not be larger than {limit} in this model"
                hint = f"give `--dim {name}={spec.minimum}:{limit}`"
                raise UsageError(message, at=str(self.path), hint=hint)
            self.limits[name] = min(limit, self.limits.get(name, limit))

    def graph(self) -> Graph:
        """The whole translation."""
        graph = Graph()
        ctx = Context(graph, {name: spec.range for name, spec in self.specs.items()})
        ctx.single_use = self.single_use
        ctx.substitutions = self.substitutions
        scope: MutableMapping[str, Value] = {}
        try:
            self._inputs(ctx, scope)
            for name, value in self.weights.items():
                scope[name] = replace(value)
            self._nodes(ctx, self.model.graph, scope, 0)
            for info in self.model.graph.output:
                if info.name not in scope:
                    raise InputError(f"nothing defines the output `{info.name}`")
                if info.name in graph.output_names:
                    hint = "return it once, or the second time through an `Identity`"
                    raise InputError(f"the output `{info.name}` is declared twice", hint=hint)
                graph.outputs.append(ctx.materialise(scope[info.name]))
                graph.output_names.append(info.name)
        except FusecError as error:
            if error.at is None:
                error.at = str(self.path)
            raise
        if not graph.outputs:
            raise InputError("the model has no outputs", at=str(self.path))
        self._check_names(graph)
        graph.prune()
        graph.drop_unused_parameters()
        return graph

    def _check_names(self, graph: Graph) -> None:
        known = dict.fromkeys((*self.declared, *graph.symbols))
        for name in self.specs:
            if name not in known:
                listed = ", ".join(f"`{symbol}`" for symbol in known) or "none"
                hint = f"its dynamic sizes are {listed}"
                raise UsageError(f"the model has no dynamic size called `{name}`", hint=hint)

    # --- what the graph is given --------------------------------------------------------------

    def _weights(self) -> dict[str, Value]:
        at = str(self.path)
        if self.model.graph.sparse_initializer:
            raise UnsupportedError("the model has sparse weights", at=at)
        weights: dict[str, Value] = {}
        names = _weight_names(self.model.graph)
        for tensor in self.model.graph.initializer:
            if not tensor.name or tensor.name in weights:
                raise InputError(f"the weight `{tensor.name}` is defined twice", at=at)
            try:
                value = read_tensor(tensor, self.source, names.get(tensor.name))
            except FusecError as error:
                error.at = error.at or at
                raise
            weights[tensor.name] = value
        return weights

    def _inputs(self, ctx: Context, scope: MutableMapping[str, Value]) -> None:
        for info in self.model.graph.input:
            if info.name in self.weights:
                continue
            if not info.name or info.name in scope:
                raise InputError(f"the input `{info.name}` is declared twice")
            kind = info.type.WhichOneof("value")
            if kind != "tensor_type":
                raise UnsupportedError(f"the input `{info.name}` is no tensor but a `{kind}`")
            tensor = info.type.tensor_type
            dtype = dtype_of(tensor.elem_type, f"the input `{info.name}`")
            if not tensor.HasField("shape"):
                message = f"the input `{info.name}` does not say how many axes it has"
                raise UnsupportedError(message, hint="export the model with shapes of its inputs")
            dims = [
                self._input_dim(ctx, info.name, axis, dim)
                for axis, dim in enumerate(tensor.shape.dim)
            ]
            name = ctx.graph.add_input(ctx.graph.fresh(info.name), TensorType(dtype, tuple(dims)))
            scope[info.name] = Value(ctx.graph.type(name), name)

    def _input_dim(self, ctx: Context, name: str, axis: int, dim: Any) -> Dim:
        if dim.HasField("dim_value") and dim.dim_value > 0:
            return int(dim.dim_value)
        text = str(dim.dim_param)
        if re.search(r"\w", text):  # `?` names nothing
            try:
                expression = symbolic.parse_dim(text)
            except ParseError:
                expression = symbolic.symbol(_as_symbol(text))
        else:
            expression = symbolic.symbol(_as_symbol(f"{name}_{axis}"))
        for part in sorted(symbolic.symbols_of(expression) & RESERVED):
            renamed = symbolic.symbol(f"{part}_")
            expression = symbolic.substitute(expression, {part: renamed})
        self.declared.update(dict.fromkeys(sorted(symbolic.symbols_of(expression))))
        expression = ctx.known_now(expression)
        for part in sorted(symbolic.symbols_of(expression)):
            if part not in ctx.graph.symbols:
                ctx.graph.symbols[part] = self._range(part)
        return expression

    def _range(self, name: str) -> Range:
        least, most = self.specs.get(name, DimSpec()).range
        if name in self.limits:
            most = self.limits[name] if most is None else min(most, self.limits[name])
        if most is not None and least > most:
            message = f"the size `{name}` would have the empty range {range_text((least, most))}"
            raise InputError(message)
        return least, most

    # --- nodes --------------------------------------------------------------------------------

    def _nodes(
        self, ctx: Context, graph: Any, scope: MutableMapping[str, Value], depth: int
    ) -> None:
        declared = {info.name: info for info in (*graph.value_info, *graph.output)}
        for node in _in_order(graph):
            if not any(name in self.read for name in node.output):
                continue
            ctx.origin = _origin(node)
            try:
                results = self._node(ctx, node, scope, declared, depth)
            except VerifyError as error:
                message = f"`{node.op_type}` does not fit its operands: {error}"
                raise InputError(message, at=self._where(ctx, node)) from error
            except ParseError as error:
                raise UnsupportedError(str(error), at=self._where(ctx, node)) from error
            except FusecError as error:
                error.at = error.at or self._where(ctx, node)
                raise
            for name, value in zip(node.output, results, strict=False):
                if not name or (value is None and name not in self.read):
                    continue
                if name in scope:
                    message = f"the value `{name}` is defined twice"
                    raise InputError(message, at=self._where(ctx, node))
                if value is not None:
                    scope[name] = value

    def _where(self, ctx: Context, node: Any) -> str:
        place = ctx.origin.path or node.name or (node.output[0] if node.output else "")
        return f"{self.path}: {place}" if place else str(self.path)

    def _node(
        self,
        ctx: Context,
        node: Any,
        scope: MutableMapping[str, Value],
        declared: Mapping[str, Any],
        depth: int,
    ) -> tuple[Value | None, ...]:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain not in self.versions:
            message = (
                f"`{node.op_type}` is of the domain `{domain}`, which the file does not import"
            )
            raise InputError(message, hint="the file is damaged; export it again")
        operands: list[Value | None] = []
        for name in node.input:
            if name and name not in scope:
                raise InputError(f"`{node.op_type}` reads `{name}`, which nothing defines")
            operands.append(scope[name] if name else None)
        call = Call(
            node.op_type,
            domain,
            self.versions[domain],
            tuple(operands),
            {entry.name: _attribute(entry) for entry in node.attribute},
            tuple(name if name in self.read else "" for name in node.output),
            node,
        )
        if (domain, call.op) == ("", "Constant"):
            return (self._constant(call),)
        if (domain, call.op) == ("", "If"):
            branch = self._branch(ctx, call)
            if branch is not None:
                return self._inlined(ctx, branch, scope, depth)
        folded = fold(ctx, call)
        if folded is not None:
            return folded if isinstance(folded, tuple) else (folded,)
        handler = HANDLERS.get((domain, call.op))
        why = "fusec has no translation of this operator"
        if handler is not None:
            try:
                made = handler(ctx, call)
                return made if isinstance(made, tuple) else (made,)
            except NotCovered as reason:
                why = str(reason)
        captures = {
            name: scope[name]
            for name in dict.fromkeys(_captured(node))
            if name in scope and name not in node.input
        }
        return add_opaque(ctx, call, why, captures, declared)

    def _constant(self, call: Call) -> Value:
        import numpy as np

        (name, held), *rest = call.attrs.items() or [("", None)]
        if rest or held is None:
            raise InputError("a `Constant` has no value, or several")
        if name == "value":
            return read_tensor(held, self.source, call.outputs[0])
        kinds = {"value_int": "i64", "value_ints": "i64", "value_float": "f32"}
        dtype = kinds.get(name) or ("f32" if name == "value_floats" else None)
        if dtype is None:
            raise UnsupportedError(f"a `Constant` has a `{name}`")
        array = np.asarray(held, dtype=np.float32 if dtype == "f32" else np.int64)
        weight = from_array(call.outputs[0], dtype, array)
        content = None
        if array.size <= 64 and (dtype == "i64" or array.size == 1):
            content = objects(elements(array), array.shape)
        return Value(weight.type, content=content, weight=weight)

    def _branch(self, ctx: Context, call: Call) -> Any | None:
        """The branch of an `If` that is always taken."""
        condition = ctx.array(call.operand(0))
        if condition is None or condition.size != 1:
            return None
        return call.attrs.get("then_branch" if bool(condition.any()) else "else_branch")

    def _inlined(
        self, ctx: Context, branch: Any, scope: MutableMapping[str, Value], depth: int
    ) -> tuple[Value | None, ...]:
        if depth >= MAX_DEPTH:
            raise InputError(f"conditionals nest deeper than {MAX_DEPTH}")
        inner: MutableMapping[str, Value] = ChainMap({}, scope)
        for tensor in branch.initializer:
            inner[tensor.name] = read_tensor(tensor, self.source)
        self._nodes(ctx, branch, inner, depth + 1)
        for info in branch.output:
            if info.name not in inner:
                raise InputError(f"nothing defines `{info.name}`, which a branch returns")
        return tuple(inner[info.name] for info in branch.output)


def _attribute(entry: Any) -> Any:
    """An attribute as a plain value; tensors and graphs as protocol buffers."""
    from onnx import AttributeProto

    if entry.ref_attr_name:
        raise InputError(f"the attribute `{entry.name}` refers to one that is not there")
    kind = entry.type
    if kind == AttributeProto.FLOAT:
        return shortest(entry.f)
    if kind == AttributeProto.INT:
        return int(entry.i)
    if kind == AttributeProto.STRING:
        return entry.s.decode("utf-8", "replace")
    if kind == AttributeProto.FLOATS:
        return [shortest(item) for item in entry.floats]
    if kind == AttributeProto.INTS:
        return [int(item) for item in entry.ints]
    if kind == AttributeProto.STRINGS:
        return [item.decode("utf-8", "replace") for item in entry.strings]
    if kind == AttributeProto.TENSOR:
        return entry.t
    if kind == AttributeProto.GRAPH:
        return entry.g
    return entry


def _subgraphs(node: Any) -> Iterable[Any]:
    for entry in node.attribute:
        if entry.HasField("g"):
            yield entry.g
        yield from entry.graphs


def _captured(node: Any, depth: int = 0) -> list[str]:
    """Names that the subgraphs of `node` read and do not define."""
    found: list[str] = []
    if depth > MAX_DEPTH:
        raise InputError(f"subgraphs nest deeper than {MAX_DEPTH}")
    for graph in _subgraphs(node):
        defined = {info.name for info in graph.input}
        defined |= {tensor.name for tensor in graph.initializer}
        for inner in graph.node:
            read = [*inner.input, *_captured(inner, depth + 1)]
            found += [name for name in read if name and name not in defined]
            defined.update(inner.output)
        found += [info.name for info in graph.output if info.name not in defined]
    return found


def _in_order(graph: Any) -> Sequence[Any]:
    """The nodes, each after those that it reads; some tools write them in another order."""
    nodes = list(graph.node)
    made: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in filter(None, node.output):
            made.setdefault(name, index)
    reads = {
        index: [made[name] for name in (*node.input, *_captured(node)) if name in made]
        for index, node in enumerate(nodes)
    }
    if all(other < index for index, others in reads.items() for other in others):
        return nodes
    try:
        return [nodes[index] for index in TopologicalSorter(reads).static_order()]
    except CycleError as error:
        names = ", ".join(f"`{nodes[index].op_type}`" for index in error.args[1])
        raise InputError(f"these nodes read each other: {names}") from None


def _reads(graph: Any, depth: int = 0) -> Counter[str]:
    """How often each name is read, in subgraphs too, or returned."""
    if depth > MAX_DEPTH:
        raise InputError(f"subgraphs nest deeper than {MAX_DEPTH}")
    counts: Counter[str] = Counter(info.name for info in graph.output)
    for node in graph.node:
        counts.update(node.input)
        for inner in _subgraphs(node):
            counts.update(_reads(inner, depth + 1))
    return counts


def _weight_names(graph: Any) -> dict[str, str]:
    """Names for the weights that an exporter renamed to numbers, from the module that reads them.

    `torch.onnx` transposes and folds the weights of linear layers and calls the results `val_12`.
    """
    names: dict[str, str] = {}
    taken = {tensor.name for tensor in graph.initializer}
    nameless = {name for name in taken if _NAMELESS.match(name)}
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv", "MatMulNBits"):
            continue
        path = _origin(node).path
        for name in node.input:
            wanted = f"{path}.weight"
            if path and name in nameless and name not in names and wanted not in taken:
                names[name] = wanted
                taken.add(wanted)
    return names


def _origin(node: Any) -> Origin:
    held = {entry.key: entry.value for entry in node.metadata_props}
    path = ""
    scopes = _SCOPE.findall(held.get("pkg.torch.onnx.name_scopes", "")[:4096])
    if len(scopes) > 1:
        path = scopes[-2]  # the last one is the operation itself
    elif node.name.startswith("/"):
        path = ".".join(node.name.strip("/").split("/")[:-1])
    lines = _STACK_LINE.findall(held.get("pkg.torch.onnx.stack_trace", "")[-4096:])
    source = f"{Path(lines[-1][0]).name}:{lines[-1][1]}" if lines else ""
    domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
    return Origin(path, source, f"onnx.{domain}{node.op_type}")


def _as_symbol(text: str) -> str:
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")[:64] or "size"
    return f"d{name}" if name[0].isdigit() else name


__all__ = ["OPSETS", "read_onnx"]
