"""Reads a live `torch.export.ExportedProgram` into an `AtenProgram`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sympy import srepr  # type: ignore[import-untyped]
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from fusec.diagnostics import InputError, UnsupportedError
from fusec.frontend.aten import (
    Argument,
    AtenGraph,
    AtenInput,
    AtenNode,
    AtenOutput,
    AtenProgram,
    AtenSymbol,
    AtenTensor,
    AtenValue,
    Ref,
    source_line,
)
from fusec.frontend.pt2 import read_expression
from fusec.ir.types import TensorType
from fusec.ir.weights import Bits, Weight, digest
from fusec.symbolic import Dim, Range

DTYPES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "f8e4m3fn",
    torch.float8_e4m3fnuz: "f8e4m3fnuz",
    torch.float8_e5m2: "f8e5m2",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}
"""fusec's names of PyTorch's dtypes."""

_STORAGE = {"bf16": torch.uint16, "f8e4m3fn": torch.uint8, "f8e4m3fnuz": torch.uint8,
            "f8e5m2": torch.uint8}  # fmt: skip
_WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def from_exported_program(
    program: ExportedProgram,
    *,
    prefix: str = "",
    weights: Mapping[str, Weight] | None = None,
) -> AtenProgram:
    """The program as data.

    Args:
        program: what `torch.export.export` gave, decomposed or not.
        prefix: a module path, such as that of a wrapper's only child, to leave out of the names of
            weights and modules.
        weights: weights by name (without `prefix`), for a program on the meta device; those that
            are missing are read from the program.

    Raises:
        InputError: an input is neither a tensor nor a constant.
    """
    return _Reader(program, prefix, weights or {}).program()


def weight_of(name: str, tensor: torch.Tensor, identity: str = "") -> Weight:
    """`tensor` as a weight that is read when it is needed; one on the meta device has no values."""
    dtype = _dtype(tensor.dtype)
    kind = TensorType(dtype, tuple(tensor.shape))

    def read() -> Bits:
        plain = tensor.detach().cpu().contiguous()
        if dtype in _STORAGE:
            plain = plain.view(_STORAGE[dtype])
        return np.asarray(plain.numpy())

    on_meta = tensor.device.type == "meta"
    return Weight(name, kind, None if on_meta else read, identity or digest("live", name))


def _dtype(dtype: torch.dtype) -> str:
    return DTYPES.get(dtype) or str(dtype).removeprefix("torch.")


class _Reader:
    """Reads one program, with its subgraphs."""

    def __init__(
        self, program: ExportedProgram, prefix: str, weights: Mapping[str, Weight]
    ) -> None:
        self.exported = program
        self.prefix = prefix
        self.weights = weights
        self.dims: dict[Any, Dim | None] = {}
        self.lines: dict[str, str] = {}
        self.identities: dict[tuple[object, ...], str] = {}

    def program(self) -> AtenProgram:
        signature = self.exported.graph_signature
        graph = self.graph(self.exported.graph_module)
        inputs = tuple(self.input(spec) for spec in signature.input_specs)
        names = iter(self.output_names())
        outputs = []
        for spec in signature.output_specs:
            if spec.kind == OutputKind.USER_OUTPUT:
                outputs.append(AtenOutput("user", next(names)))
            else:
                outputs.append(AtenOutput("mutation", self.short(spec.target or "")))
        return AtenProgram(graph, inputs, tuple(outputs), self.ranges())

    def ranges(self) -> dict[str, Range]:
        ranges: dict[str, Range] = {}
        for symbol, values in self.exported.range_constraints.items():
            if symbol.is_Symbol:
                lower = int(values.lower) if values.lower.is_Integer else 0
                upper = int(values.upper) if values.upper.is_Integer else None
                ranges[str(symbol)] = (lower, upper if upper is None or upper < 1 << 62 else None)
        return ranges

    def input(self, spec: Any) -> AtenInput:
        if spec.kind in _WEIGHTS:
            name = self.short(spec.target)
            return AtenInput("weight", name, self.weight(name, spec.target))
        if spec.kind == InputKind.USER_INPUT:
            if hasattr(spec.arg, "value"):
                return AtenInput("fixed", spec.arg.name, value=self.argument(spec.arg.value))
            return AtenInput("user", spec.arg.name)
        raise InputError(f"input `{spec.arg.name}` is a `{spec.kind.name.lower()}`, not a tensor")

    def weight(self, name: str, target: str) -> Weight:
        if name in self.weights:
            return self.weights[name]
        held = self.exported.state_dict.get(target)
        tensor = self.exported.constants[target] if held is None else held
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"constant `{name}` is a `{type(tensor).__name__}`, not a tensor")
        place: tuple[object, ...] = (name,)
        if tensor.device.type != "meta" and tensor.numel():
            place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        return weight_of(name, tensor, self.identities.setdefault(place, digest("live", name)))

    def output_names(self) -> list[str]:
        """Names by the place of each output in what the model returns."""
        spec = self.exported.call_spec.out_spec
        if spec is None:
            return []
        tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
        leaves, _ = pytree.tree_flatten_with_path(tree)
        names = []
        for path, _ in leaves:
            keys = [
                str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))
                for key in path
            ]
            text = "_".join(keys)
            names.append(f"output_{text}" if text[:1].isdigit() else text or "output")
        return ["output"] if names == ["output_0"] else names

    # --- graphs -----------------------------------------------------------------------------

    def graph(self, module: torch.fx.GraphModule) -> AtenGraph:
        nodes: list[AtenNode] = []
        inputs: list[AtenValue] = []
        outputs: tuple[Argument, ...] = ()
        names: dict[torch.fx.Node, Any] = {}
        for node in module.graph.nodes:
            if node.op == "placeholder":
                value = self.value(node.name, node.meta.get("val"))
                inputs.append(value)
                names[node] = self.reference(value)
            elif node.op == "get_attr":
                held = getattr(module, node.target)
                names[node] = self.graph(held) if isinstance(held, torch.fx.GraphModule) else None
            elif node.op == "output":
                results = node.args[0]
                if not isinstance(results, tuple | list):
                    results = (results,)
                outputs = tuple(self.argument(item, names) for item in results)
            else:
                made = self.call(node, names)
                if made is not None:
                    nodes.append(made)
        return AtenGraph(tuple(nodes), tuple(inputs), outputs)

    def call(self, node: torch.fx.Node, names: dict[torch.fx.Node, Any]) -> AtenNode | None:
        target = _target(node.target)
        first = node.args[0] if node.args else None
        if target == "_operator.getitem" and isinstance(first, torch.fx.Node):
            names[node] = names[first][node.args[1]]
            return None
        value = node.meta.get("val")
        results: list[AtenValue] = []
        names[node] = None if value is None else self.results(node.name, value, results)
        return AtenNode(
            target,
            tuple(self.argument(item, names) for item in node.args),
            {key: self.argument(item, names) for key, item in node.kwargs.items()},
            tuple(results),
            self.path(node),
            self.line(node),
        )

    def results(self, name: str, value: Any, found: list[AtenValue]) -> Argument:
        """Add what a node makes to `found`, lists flattened; how later nodes refer to it."""
        if isinstance(value, tuple | list):
            return tuple(self.results(f"{name}[{i}]", v, found) for i, v in enumerate(value))
        found.append(self.value(name, value))
        return self.reference(found[-1])

    def value(self, name: str, value: Any) -> AtenValue:
        if isinstance(value, torch.Tensor):
            strides = (
                tuple(self.size(s) for s in value.stride())
                if value.layout == torch.strided
                else None
            )
            shape = tuple(self.size(dim) for dim in value.shape)
            return AtenTensor(name, _dtype(value.dtype), shape, strides)
        if isinstance(value, torch.SymInt):
            return AtenSymbol(name, self.dim(value), str(value))
        if isinstance(value, bool) or value is None:
            return AtenSymbol(name, None, str(value)) if value is not None else None
        if isinstance(value, int):
            return AtenSymbol(name, value, str(value))
        return AtenSymbol(name, None, str(value))

    @staticmethod
    def reference(value: AtenValue) -> Argument:
        if isinstance(value, AtenSymbol) and value.dim is not None:
            return value.dim
        return None if value is None else Ref(value.name)

    def argument(self, item: Any, names: Mapping[torch.fx.Node, Any] | None = None) -> Argument:
        if isinstance(item, torch.fx.Node):
            found: Argument = (names or {})[item]
            return found
        if isinstance(item, tuple | list):
            return tuple(self.argument(part, names) for part in item)
        if isinstance(item, torch.dtype):
            return _dtype(item)
        if isinstance(item, torch.SymInt):
            return self.size(item)
        if item is None or isinstance(item, bool | int | float | complex | str):
            return item
        if isinstance(item, torch.layout | torch.memory_format):
            return str(item).removeprefix("torch.")
        return str(item)

    # --- sizes and places -------------------------------------------------------------------

    def dim(self, size: Any) -> Dim | None:
        if not isinstance(size, torch.SymInt):
            return int(size)
        expression = size.node.expr
        if expression not in self.dims:
            self.dims[expression] = read_expression(srepr(expression))
        return self.dims[expression]

    def size(self, size: Any) -> Dim:
        dim = self.dim(size)
        if dim is None:
            raise UnsupportedError(
                f"the size `{size}` cannot be read",
                hint="fix the size in question with `--dim`",
            )
        return dim

    def short(self, name: str) -> str:
        """`name` without the prefix."""
        if name == self.prefix:
            return ""
        return name.removeprefix(f"{self.prefix}.") if self.prefix else name

    def path(self, node: torch.fx.Node) -> str:
        stack = node.meta.get("nn_module_stack")
        if not stack:
            return ""
        name, _ = next(reversed(stack.values()))
        return self.short(name)

    def line(self, node: torch.fx.Node) -> str:
        trace = node.meta.get("stack_trace") or ""
        if trace not in self.lines:
            self.lines[trace] = source_line(trace)
        return self.lines[trace]


def _target(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order.{target.name()}"  # type: ignore[no-untyped-call]
    module = getattr(target, "__module__", "") or ""
    return f"{module}.{getattr(target, '__name__', str(target))}"
