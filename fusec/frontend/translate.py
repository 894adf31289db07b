"""Translates an `AtenProgram` into a graph, one source node after the other.

What is exported writes in place: `copy_`, `add_`, `index_put_` on slices of slices.  A graph does
not.  So each tensor of the program knows the memory it lives in (`_Storage`) and how it is seen
there (a chain of views).  A write makes a new value of the memory, by undoing the views one by one
(`slice_scatter` and its like), and counts its version up; a view that is read after that is taken
anew.  Every step costs what the node costs, so translation is linear.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fusec import symbolic
from fusec.diagnostics import InternalError, UnsupportedError
from fusec.dtypes import DTYPES
from fusec.frontend.aten import (
    Argument,
    AtenGraph,
    AtenNode,
    AtenProgram,
    AtenSymbol,
    AtenTensor,
    AtenValue,
    Ref,
)
from fusec.frontend.aten_ops import TABLE
from fusec.frontend.aten_ops import symbols as symbol_ops
from fusec.frontend.aten_ops.base import (
    BY_PARTS,
    COMPLEX,
    REAL_OR_COMPLEX,
    Builder,
    Complex,
    Handler,
    Result,
    SymFloat,
    Val,
    View,
    numel,
)
from fusec.ir.graph import Graph, Origin
from fusec.ir.types import Attr, TensorType
from fusec.symbolic import Dim, Expr, Range

IGNORED = frozenset(
    {
        "aten._assert_async.msg",
        "aten._assert_scalar.default",
        "aten._assert_tensor_metadata.default",
        "aten.sym_constrain_range.default",
        "aten.sym_constrain_range_for_size.default",
        "aten._print.default",
        "torch._C._set_grad_enabled",
        "torch._check",
        "torch._check_is_size",
    }
)
"""Calls that only check, or print."""

INLINED = frozenset(
    f"higher_order.{name}"
    for name in (
        "hints_wrapper",
        "invoke_subgraph",
        "strict_mode",
        "tag_activation_checkpoint",
        "wrap",
        "wrap_activation_checkpoint",
        "wrap_with_autocast",
        "wrap_with_set_grad_enabled",
    )
)
"""Calls of a subgraph that do nothing else."""

CONTROL_FLOW = frozenset(
    f"higher_order.{name}"
    for name in (
        "associative_scan",
        "cond",
        "flex_attention",
        "map",
        "map_impl",
        "scan",
        "while_loop",
    )
)

AUTOCAST = "higher_order.wrap_with_autocast"

_UNBACKED = re.compile(r"(u|zuf|zf)\d+")

_GIVEN_RESULTS = ("out", "values", "max", "min")
"""What the overloads that write into given tensors call the first of them."""


def build_graph(
    program: AtenProgram,
    *,
    name: str = "main",
    dims: Mapping[str, Sequence[str | None]] | None = None,
    rename: Mapping[str, str] | None = None,
    ranges: Mapping[str, Range] | None = None,
    output_names: Sequence[str] | None = None,
    notes: list[str] | None = None,
) -> Graph:
    """The graph that `program` means.

    Args:
        program: what was exported.
        name: a word for printing.
        dims: for an input, names for its sizes: `{"input_ids": ("batch", "seq")}`.  A size that
            the export did not keep as one symbol is left as it is.
        rename: further names for symbols of the export.
        ranges: bounds of symbols, by their new names; otherwise the export's own, from 1 on.
        output_names: what the outputs are called, instead of what the program calls them.
        notes: is given a sentence for each effect that the graph leaves out.

    Raises:
        UnsupportedError: a size depends on data, control flow is kept in the program, or the
            program keeps state between calls.
    """
    names = {**_named_symbols(program, dims or {}), **(rename or {})}
    bounds = {names.get(old, old): range for old, range in program.symbols.items()}
    for value in program.graph.inputs:
        if isinstance(value, AtenTensor):
            for dim in value.shape:
                for used in symbolic.symbols_of(dim):
                    bounds.setdefault(names.get(used, used), (0, None))
    bounds = {key: (max(least, 1), most) for key, (least, most) in bounds.items()}
    bounds.update({key: range for key, range in (ranges or {}).items() if key in bounds})
    translation = _Translation(Graph(name, bounds), names)
    return translation.run(program, output_names, notes if notes is not None else [])


def unknown_ops(program: AtenProgram) -> set[str]:
    """Targets that would become opaque nodes; PyTorch may know how to decompose them."""
    return {node.target for node in _all_nodes(program.graph) if _is_unknown(node)}


def _all_nodes(graph: AtenGraph) -> Iterator[AtenNode]:
    for node in graph.nodes:
        yield node
        for argument in node.args:
            if isinstance(argument, AtenGraph):
                yield from _all_nodes(argument)


def _is_unknown(node: AtenNode) -> bool:
    if _autocasts(node):
        return True
    if node.target in IGNORED or node.target in INLINED or node.target in CONTROL_FLOW:
        return False
    if not any(isinstance(value, AtenTensor) for value in node.outputs):
        return False
    return node.target not in TABLE and functional(node.target) not in TABLE


def _autocasts(node: AtenNode) -> bool:
    """Whether it is a region of autocast: its casts are written out by a decomposition only."""
    return node.target == AUTOCAST and node.args[2] is True


def functional(target: str) -> str | None:
    """The target that computes what `target` writes in place; `None` if it does not."""
    if target.count(".") != 2:
        return None
    space, base, overload = target.split(".")
    if base.startswith("__i") and base.endswith("__"):
        return f"{space}.__{base[3:]}.{overload}"
    if base.endswith("_") and not base.endswith("__"):
        return f"{space}.{base[:-1]}.{overload}"
    return None


def _named_symbols(
    program: AtenProgram, dims: Mapping[str, Sequence[str | None]]
) -> dict[str, str]:
    names: dict[str, str] = {}
    for given, value in zip(program.inputs, program.graph.inputs, strict=True):
        wanted = dims.get(given.name, ())
        if given.kind != "user" or not isinstance(value, AtenTensor):
            continue
        for dim, name in zip(value.shape, wanted, strict=False):
            if name is not None and isinstance(dim, Expr) and str(dim) in program.symbols:
                names.setdefault(str(dim), name)
    return names


@dataclass(slots=True, eq=False)
class _Storage:
    """Memory that tensors of the program share.

    Attributes:
        label: the weight or input that it comes from.
        is_input: whether that is an input.
        version: counts writes.
    """

    label: str = ""
    is_input: bool = False
    version: int = 0


@dataclass(slots=True, eq=False)
class _Tensor:
    """A tensor of the program: the whole of a storage, or a view of another tensor.

    Attributes:
        record: what the export says of it.
        storage: where it lives.
        value: its contents when the storage had `version`.
        version: see `value`.
        parent: what it is a view of.
        view: how.
    """

    record: AtenTensor
    storage: _Storage
    value: Val | Complex
    version: int
    parent: _Tensor | None = None
    view: View | None = None

    @property
    def is_all(self) -> bool:
        """Whether it is all of the storage: views of views of it have as many elements."""
        base, count = self, numel(self.record.shape)
        while base.parent is not None:
            base = base.parent
        return numel(base.record.shape) == count


@dataclass(frozen=True, slots=True)
class _Unknown:
    """A number of which nothing is known before the program runs; only checks may read it."""

    maker: str


@dataclass(frozen=True, slots=True)
class _NotMade:
    """A result that the translation of an operation leaves out, such as the places of maxima."""

    maker: str


_Held = _Tensor | SymFloat | Expr | int | float | bool | _Unknown | _NotMade | None


class _Translation:
    """The state of one translation."""

    def __init__(self, graph: Graph, names: Mapping[str, str]) -> None:
        self.graph = graph
        self.build = Builder(graph)
        self.names: dict[str, Dim] = {old: symbolic.symbol(new) for old, new in names.items()}
        self.renamed: dict[Expr, Dim] = {}
        self.written: dict[str, _Storage] = {}
        self.makers: dict[str, str] = {}
        self.arguments: set[str] = set()

    # --- the whole --------------------------------------------------------------------------

    def run(
        self, program: AtenProgram, output_names: Sequence[str] | None, notes: list[str]
    ) -> Graph:
        self.arguments = {given.name for given in program.inputs if given.kind == "user"}
        values: dict[str, _Held] = {}
        bases: dict[str, Val] = {}
        for given, record in zip(program.inputs, program.graph.inputs, strict=True):
            if given.kind == "fixed":
                if isinstance(record, AtenTensor | AtenSymbol):
                    value = given.value
                    known = value if isinstance(value, int | float | bool) else None
                    values[record.name] = known
                continue
            if not isinstance(record, AtenTensor):
                hint = "give it as a tensor, or fix its value before the export"
                raise UnsupportedError(f"input `{given.name}` is not a tensor", hint=hint)
            if given.kind == "user":
                kind = TensorType(self._dtype(record, given.name), self._shape(record))
                base = Val(self.build, self.graph.add_input(given.name, kind))
                storage = _Storage(given.name, is_input=True)
            else:
                if given.weight is None:
                    raise InternalError(f"weight `{given.name}` has no contents")
                identity = given.weight.identity
                if identity not in bases:
                    added = self.graph.add_parameter(self._free(given.name), given.weight)
                    bases[identity] = Val(self.build, added)
                base = bases[identity]
                storage = _Storage(base.name)
            values[record.name] = _Tensor(record, storage, base, storage.version)
        self._translate(program.graph, values)
        for index, (spec, argument) in enumerate(
            zip(program.outputs, program.graph.outputs, strict=True)
        ):
            if spec.kind != "user":
                continue
            result = self._returned(argument, values, f"output {index}")
            if result is not None:
                self.graph.outputs.append(result.name)
                self.graph.output_names.append(spec.name)
        if output_names is not None:
            if len(output_names) != len(self.graph.outputs):
                count = len(self.graph.outputs)
                raise InternalError(f"{len(output_names)} names for {count} outputs")
            self.graph.output_names = list(output_names)
        self.graph.prune()
        self.graph.drop_unused_parameters()
        self._check_state(program, notes)
        return self.graph

    def _free(self, name: str) -> str:
        """A name for a weight: weights come first, and an argument may have the name of one."""
        free = self.graph.fresh(name)
        while free in self.arguments:
            free = self.graph.fresh(f"{free}_")
        return free

    def _returned(self, argument: Argument, values: Mapping[str, _Held], what: str) -> Val | None:
        held = self._resolve(argument, values)
        if held is None:
            return None
        if isinstance(held, Val):
            return held
        if isinstance(held, SymFloat):
            return held.value
        if isinstance(held, bool | int | Expr):
            return self.build.scalar(held, "bool" if isinstance(held, bool) else "i64")
        if isinstance(held, float):
            return self.build.scalar(held, "f32")
        raise UnsupportedError(f"{what} is not a real tensor")

    def _check_state(self, program: AtenProgram, notes: list[str]) -> None:
        """Writes to weights and inputs have no effect outside: say so, or refuse."""
        for spec in program.outputs:
            if spec.kind == "mutation":
                self.written.setdefault(
                    spec.name, _Storage(spec.name, spec.name in self.graph.inputs)
                )
        for label, storage in self.written.items():
            if storage.is_input:
                notes.append(f"the model writes to its input `{label}`; the caller's array is kept")
            elif label in self.graph.parameters:
                raise UnsupportedError(
                    f"the model keeps state in its buffer or weight `{label}` from call to call",
                    at=label,
                    hint="make it an input and an output of the model; where the first call alone "
                    "changes weights, call the model before it is exported, or switch that off, "
                    'as `"rescale_every": 0` does in the configuration of RWKV',
                )
            else:
                notes.append(
                    f"the model writes to its buffer `{label}`; nothing it returns reads it"
                )

    # --- nodes ------------------------------------------------------------------------------

    def _translate(self, graph: AtenGraph, values: dict[str, _Held]) -> None:
        for node in graph.nodes:
            if node.target in IGNORED:
                continue
            self.build.origin = Origin(node.path, node.source, node.target)
            if node.target in INLINED:
                self._inline(node, values)
            elif not any(isinstance(value, AtenTensor) for value in node.outputs):
                self._symbols(node, values)
            elif node.target in CONTROL_FLOW:
                kind = node.target.rpartition(".")[2]
                raise self.build.unsupported(
                    f"the model keeps control flow: `{kind}`",
                    "let the condition depend on sizes or on Python values only, so that the "
                    "export takes one way",
                )
            else:
                self._call(node, values)

    def _inline(self, node: AtenNode, values: dict[str, _Held]) -> None:
        place = next(i for i, given in enumerate(node.args) if isinstance(given, AtenGraph))
        body = node.args[place]
        assert isinstance(body, AtenGraph)
        if _autocasts(node):
            for first in body.nodes[:1]:
                self.build.origin = Origin(first.path, first.source, node.target)
            raise self.build.unsupported(
                "the model computes in a region of autocast, whose casts the export leaves out",
                "export it with `run_decompositions({})`, which writes them out",
            )
        given = [item for item in node.args[place + 1 :] if not isinstance(item, str)]
        inner: dict[str, _Held] = {}
        for record, argument in zip(body.inputs, given, strict=True):
            if record is not None:
                inner[record.name] = self._held(argument, values)
        self._translate(body, inner)
        for value, result in zip(node.outputs, body.outputs, strict=True):
            if value is not None:
                values[value.name] = self._held(result, inner)

    def _held(self, argument: Argument, values: Mapping[str, _Held]) -> _Held:
        """What an argument names, without reading it."""
        if isinstance(argument, Ref):
            return values[argument.name]
        if isinstance(argument, Expr):
            return self._dim(argument)
        if argument is None or isinstance(argument, bool | int | float):
            return argument
        raise self.build.unsupported(f"`{argument}` cannot be given to a subgraph")

    def _symbols(self, node: AtenNode, values: dict[str, _Held]) -> None:
        """A node that makes no tensor: numbers of sizes, or nothing."""
        for value in node.outputs:
            if not isinstance(value, AtenSymbol):
                continue
            if value.dim is not None:  # whoever reads it reads the size itself
                self._remember_makers(value.dim, node)
            elif any(self._is_unknown(argument, values) for argument in node.args):
                values[value.name] = _Unknown(f"`{node.target}`")
            else:
                arguments = [self._resolve(argument, values) for argument in node.args]
                result = symbol_ops.compute(self.build, node.target, arguments)
                values[value.name] = _Unknown(f"`{node.target}`") if result is None else result
        if not node.outputs:
            raise self.build.unsupported(
                f"`{node.target}` gives nothing back, so what it does cannot be kept",
                "let it return what it writes",
            )

    def _is_unknown(self, argument: Argument, values: Mapping[str, _Held]) -> bool:
        if isinstance(argument, Ref):
            return isinstance(values[argument.name], _Unknown)
        return isinstance(argument, Expr) and any(
            _UNBACKED.fullmatch(symbol) for symbol in symbolic.symbols_of(argument)
        )

    def _remember_makers(self, dim: Dim, node: AtenNode) -> None:
        if isinstance(dim, Expr):
            for symbol in symbolic.symbols_of(dim):
                if _UNBACKED.fullmatch(symbol):
                    self.makers.setdefault(symbol, f"`{node.target}`")

    def _call(self, node: AtenNode, values: dict[str, _Held]) -> None:
        self._refuse_data_dependent(node)
        build = self.build
        build.declared = tuple(self._declared(value) for value in node.outputs)
        first = self._first(node, values)
        build.source = None if first is None else first.record
        build.source_is_all = first is None or first.is_all
        outputs = [value for value in node.outputs if isinstance(value, AtenTensor)]
        build.target = outputs[0]
        pure = functional(node.target)
        if pure is not None and node.target not in TABLE:
            if first is None:
                raise build.unsupported(f"`{node.target}` writes to nothing")
            self._write_in_place(node, pure, first, values)
            return
        handler = TABLE.get(node.target)
        results: Sequence[Val | View | Complex | SymFloat | None]
        if handler is None:
            self._refuse_given_results(node, values)
            results = self._opaque(node, node.target, values)
            if first is not None and node.target.startswith("aten."):
                results = [_perhaps_shared(result) for result in results]
        else:
            results = _as_list(self._apply(handler, node, node.target, values))
        if len(results) < len(node.outputs):
            raise InternalError(f"`{node.target}` has {len(node.outputs)} results", at=node.path)
        for value, result in zip(node.outputs, results, strict=False):
            if isinstance(value, AtenTensor):
                values[value.name] = self._bind(value, result, first, node)

    def _bind(
        self,
        record: AtenTensor,
        result: Val | View | Complex | SymFloat | None,
        first: _Tensor | None,
        node: AtenNode,
    ) -> _Tensor | _NotMade:
        if result is None:
            return _NotMade(f"`{node.target}`")
        if isinstance(result, View):
            if first is None:
                raise InternalError(f"`{node.target}` views nothing", at=node.path)
            value = self._view(result, self._read(first))
            self._check(value, record, node)
            return _Tensor(record, first.storage, value, first.storage.version, first, result)
        if isinstance(result, SymFloat):
            result = result.value
        if isinstance(result, Val):
            result = self._decided(result, self._shape(record))
        self._check(result, record, node)
        return _Tensor(record, _Storage(), result, 0)

    def _decided(self, value: Val, shape: tuple[Dim, ...]) -> Val:
        """`value` with the sizes that are numbers in `shape`, where ranges leave no other."""
        for axis, (ours, theirs) in enumerate(zip(value.shape, shape, strict=False)):
            if isinstance(ours, Expr) and isinstance(theirs, int):
                if symbolic.simplify(ours, self.graph.symbols) == theirs:
                    value = self.build.slice(value, axis, 0, theirs)
        return value

    def _check(self, value: Val | Complex, record: AtenTensor, node: AtenNode) -> None:
        """What the translation made is what the export recorded."""
        if isinstance(value, Complex):
            self._check(
                value.real, AtenTensor(record.name, _real(record.dtype), record.shape), node
            )
            return
        kind, shape = value.type, self._shape(record)
        wrong = kind.dtype != record.dtype or len(shape) != kind.rank
        for ours, theirs in zip(kind.shape, shape, strict=False):
            wrong = wrong or (isinstance(ours, int) and isinstance(theirs, int) and ours != theirs)
        if wrong:
            raise InternalError(
                f"`{node.target}` became `{kind}`, but the export says "
                f"`{record.dtype}[{', '.join(map(str, shape))}]`",
                at=node.path or node.source,
            )

    def _apply(
        self, handler: Handler, node: AtenNode, target: str, values: Mapping[str, _Held]
    ) -> Result:
        args = [self._resolve(argument, values) for argument in node.args]
        kwargs = {name: self._resolve(item, values) for name, item in node.kwargs.items()}
        if target not in REAL_OR_COMPLEX and any(map(_has_complex, (*args, *kwargs.values()))):
            return self._by_parts(handler, target, args, kwargs)
        return self._invoke(handler, target, args, kwargs)

    def _invoke(
        self, handler: Handler, target: str, args: list[object], kwargs: dict[str, object]
    ) -> Result:
        try:
            return handler(self.build, *args, **kwargs)
        except TypeError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise  # not the call itself
            raise self.build.unsupported(
                f"`{target}` is called in a way that is not known: {error}"
            ) from error

    def _by_parts(
        self, handler: Handler, target: str, args: list[object], kwargs: dict[str, object]
    ) -> Result:
        if target not in BY_PARTS:
            raise self.build.unsupported(
                f"`{target}` is not supported for complex numbers",
                "write it with real numbers",
            )

        def part(value: object, imaginary: bool) -> object:
            if isinstance(value, Complex):
                return value.imag if imaginary else value.real
            if isinstance(value, Val) and imaginary and value.type.element.is_float:
                return self.build.full(value.shape, 0, value.dtype)  # an integer is an index
            if isinstance(value, tuple):
                return tuple(part(item, imaginary) for item in value)
            return value

        sides = []
        for imaginary in (False, True):
            given = [part(value, imaginary) for value in args]
            named = {key: part(value, imaginary) for key, value in kwargs.items()}
            results = _as_list(self._invoke(handler, target, given, named))
            plain: list[Val | View] = []
            for result in results:
                if not isinstance(result, Val | View):
                    raise InternalError(f"`{target}` cannot be applied to parts")
                plain.append(result)
            sides.append(plain)
        return tuple(
            Complex(real, imag) if isinstance(real, Val) and isinstance(imag, Val) else real
            for real, imag in zip(*sides, strict=True)
        )

    # --- memory -----------------------------------------------------------------------------

    def _view(self, view: View, value: Val | Complex) -> Val | Complex:
        seen: Val | Complex
        if isinstance(value, Complex) and not view.whole:
            seen = Complex(view.forward(value.real), view.forward(value.imag))
        else:
            seen = view.forward(value)
        return seen

    def _read(self, tensor: _Tensor) -> Val | Complex:
        """The present contents of a tensor."""
        if tensor.version != tensor.storage.version:
            assert tensor.parent is not None
            assert tensor.view is not None
            if not tensor.view.certain:
                raise self._unclear(tensor)
            tensor.value = self._view(tensor.view, self._read(tensor.parent))
            tensor.version = tensor.storage.version
        return tensor.value

    def _write(self, tensor: _Tensor, new: Val | Complex) -> None:
        """Replace the contents of a tensor, and so those of all that share its memory."""
        storage = tensor.storage
        changed = [(tensor, new)]
        while tensor.parent is not None:
            view, parent = tensor.view, tensor.parent
            assert view is not None
            if not view.certain:
                raise self._unclear(tensor)
            before = self._read(parent)
            if view.backward is None:
                raise self.build.unsupported(
                    f"`{self.build.origin.op}` writes through a view that cannot be written through"
                )
            if isinstance(before, Complex) and isinstance(new, Complex) and not view.whole:
                new = Complex(
                    view.backward(before.real, new.real), view.backward(before.imag, new.imag)
                )
            else:
                new = view.backward(before, new)
            tensor = parent
            changed.append((tensor, new))
        storage.version += 1
        for part, value in changed:
            part.value, part.version = value, storage.version
        if storage.label:
            self.written[storage.label] = storage

    def _unclear(self, tensor: _Tensor) -> UnsupportedError:
        return self.build.unsupported(
            f"`{self.build.origin.op}` meets memory of `{tensor.record.name}`, of which it cannot "
            "be told whether it is shared",
            "call `.clone()` before the write, or export with `run_decompositions({})`",
        )

    def _write_in_place(
        self, node: AtenNode, pure: str, first: _Tensor, values: dict[str, _Held]
    ) -> None:
        handler = TABLE.get(pure)
        before = self._read(first)
        if handler is None:
            results: Sequence[Val | View | Complex | SymFloat | None] = self._opaque(
                node, pure, values
            )
        else:
            results = _as_list(self._apply(handler, node, pure, values))
        new = results[0]
        (name,) = (value.name for value in node.outputs if value is not None)
        if isinstance(new, View):  # unsqueeze_ and its like change how the tensor is seen
            record = next(value for value in node.outputs if isinstance(value, AtenTensor))
            seen = self._bind(record, new, first, node)
            for key, held in list(values.items()):
                if held is first:
                    values[key] = seen
            values[name] = seen
            return
        if isinstance(new, Val) and isinstance(before, Val):
            if handler is None and new.shape != before.shape:  # resize_ and its like
                raise self.build.unsupported(
                    f"`{node.target}` gives a tensor another size",
                    "make a new tensor, for example with `reshape` or `new_empty`",
                )
            new = self.build.expand(self.build.cast(new, before.dtype), before.shape)
        elif not isinstance(new, Complex):
            raise self.build.unsupported(f"`{node.target}` writes a complex tensor")
        self._write(first, new)
        values[name] = first

    # --- arguments --------------------------------------------------------------------------

    def _first(self, node: AtenNode, values: Mapping[str, _Held]) -> _Tensor | None:
        argument = node.args[0] if node.args else node.kwargs.get("self")
        held = values.get(argument.name) if isinstance(argument, Ref) else None
        return held if isinstance(held, _Tensor) else None

    def _resolve(self, argument: Argument, values: Mapping[str, _Held]) -> object:
        if isinstance(argument, Ref):
            held = values[argument.name]
            if isinstance(held, _Unknown):
                raise self.build.unsupported(
                    f"`{self.build.origin.op}` reads a number that depends on data: {held.maker} "
                    "makes it",
                    "keep the number in a tensor instead of taking it out with `.item()`",
                )
            if isinstance(held, _NotMade):
                raise self.build.unsupported(
                    f"`{argument.name}`, a result of {held.maker}, is read, but fusec does not "
                    "compute it",
                    "give the model a version of that part that computes it another way",
                )
            return self._read(held) if isinstance(held, _Tensor) else held
        if isinstance(argument, Expr):
            return self._dim(argument)
        if isinstance(argument, tuple):
            return tuple(self._resolve(item, values) for item in argument)
        return argument

    def _dim(self, dim: Dim) -> Dim:
        if isinstance(dim, int):
            return dim
        found = self.renamed.get(dim)
        if found is None:
            self._refuse_unbacked(dim)
            found = symbolic.simplify(symbolic.substitute(dim, self.names), self.graph.symbols)
            self.renamed[dim] = found
        return found

    def _shape(self, record: AtenTensor) -> tuple[Dim, ...]:
        return tuple(self._dim(dim) for dim in record.shape)

    def _dtype(self, record: AtenTensor, what: str) -> str:
        if record.dtype not in DTYPES:
            raise self.build.unsupported(f"`{what}` has the dtype `{record.dtype}`")
        return record.dtype

    def _declared(self, value: AtenValue) -> TensorType | None:
        if not isinstance(value, AtenTensor):
            return None
        if value.dtype not in COMPLEX:
            self._dtype(value, self.build.origin.op)
        return TensorType(_real(value.dtype), self._shape(value))

    def _refuse_data_dependent(self, node: AtenNode) -> None:
        for value in node.outputs:
            if isinstance(value, AtenTensor):
                for dim in value.shape:
                    self._remember_makers(dim, node)

    def _refuse_given_results(self, node: AtenNode, values: Mapping[str, _Held]) -> None:
        """A call that writes into tensors it is given, such as `torch.add(x, y, out=z)`."""
        for name in _GIVEN_RESULTS:
            argument = node.kwargs.get(name)
            if isinstance(argument, Ref) and isinstance(values[argument.name], _Tensor):
                raise self.build.unsupported(
                    f"`{node.target}` writes into a tensor that it is given as `{name}`",
                    "assign what it returns instead, or copy it with `.copy_()`",
                )

    def _refuse_unbacked(self, dim: Expr) -> None:
        for symbol in sorted(symbolic.symbols_of(dim)):
            if _UNBACKED.fullmatch(symbol):
                maker = self.makers.get(symbol, "an operation")
                raise self.build.unsupported(
                    f"the size `{dim}` depends on data: {maker} makes it",
                    "write the model so that sizes follow from the sizes of its inputs, for "
                    "example with a mask instead of a selection",
                )

    # --- operations that are not known ------------------------------------------------------

    def _opaque(self, node: AtenNode, target: str, values: Mapping[str, _Held]) -> list[Val | None]:
        """One node that keeps the call as it is: operands, and attributes that refer to them."""
        operands: list[str] = []

        def attribute(value: object) -> Attr:
            if isinstance(value, SymFloat):
                value = value.value
            if isinstance(value, Val):
                operands.append(value.name)
                return f"%{len(operands) - 1}"
            if isinstance(value, tuple):
                return tuple(attribute(item) for item in value)
            if value is None or isinstance(value, bool | int | float | str | Expr):
                return value
            raise self.build.unsupported(
                f"`{target}` is not supported for `{type(value).__name__}`"
            )

        args = tuple(attribute(self._resolve(item, values)) for item in node.args)
        named = tuple(
            (name, attribute(self._resolve(item, values))) for name, item in node.kwargs.items()
        )
        types = []
        for value in node.outputs:
            if isinstance(value, AtenTensor):
                types.append(TensorType(self._dtype(value, target), self._shape(value)))
        op = target if target.startswith("aten.") else f"torch.{target}"
        attrs: dict[str, Attr] = {"args": args, "kwargs": named}
        made = self.graph.add(op, operands, attrs, types=types, origin=self.build.origin)
        results = iter(made.outputs)
        return [
            Val(self.build, next(results)) if isinstance(value, AtenTensor) else None
            for value in node.outputs
        ]


def _perhaps_shared(result: Val | None) -> View | None:
    """What an unknown operation makes may be a view: later writes are refused."""
    return None if result is None else View(lambda x: result, None, certain=False)


def _real(dtype: str) -> str:
    return COMPLEX.get(dtype, dtype)


def _has_complex(value: object) -> bool:
    if isinstance(value, tuple):
        return any(map(_has_complex, value))
    return isinstance(value, Complex)


def _as_list(result: Result) -> Sequence[Val | View | Complex | SymFloat | None]:
    return result if isinstance(result, tuple) else (result,)
