"""The graph: values, nodes, and the only operations that may change them.

Every value is named once in the whole graph and is defined by an input, a parameter or a node.
networkx holds who depends on whom; nothing outside this module touches it.  Indexes by value make
`producer`, `users` and `type` constant-time, so that a pass stays linear in the nodes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import networkx as nx

from fusec.diagnostics import VerifyError
from fusec.ir.ops import OPS
from fusec.ir.types import Attr, Attrs, TensorType
from fusec.ir.weights import Weight
from fusec.symbolic import Range, symbols_of

_NO_ATTRS: Attrs = MappingProxyType({})
_UNFIT = re.compile(r"[^A-Za-z0-9_.]+")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a node comes from.

    Attributes:
        path: the module in the model, such as `model.layers.0.self_attn`.
        source: file and line of the model's code, where known.
        op: the operation of the source, such as `aten.linear.default`.
    """

    path: str = ""
    source: str = ""
    op: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operation: reads the values `inputs` in operand order and defines `outputs`.

    A node is called by the first value it defines.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Attrs = field(default_factory=lambda: _NO_ATTRS)
    origin: Origin = Origin()

    @property
    def name(self) -> str:
        """The name of the node: that of its first output."""
        return self.outputs[0]

    @property
    def output(self) -> str:
        """The only output."""
        (only,) = self.outputs
        return only


class Graph:
    """A graph in which each value is defined once and read by operand position.

    Attributes:
        name: a word for printing.
        symbols: the range of each symbol that a size may mention.
        inputs: values given at run time, in order.
        outputs: values returned, in order; a value may be returned twice.
        output_names: what the outputs are called outside, in the same order.
    """

    def __init__(self, name: str = "main", symbols: Mapping[str, Range] | None = None) -> None:
        self.name = name
        self.symbols: dict[str, Range] = dict(symbols or {})
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.output_names: list[str] = []
        self._parameters: dict[str, Weight] = {}
        self._types: dict[str, TensorType] = {}
        self._nodes: dict[str, Node] = {}
        self._rank: dict[str, tuple[int, int]] = {}
        self._producer: dict[str, str] = {}
        self._users: dict[str, dict[str, None]] = {}
        self._depends: nx.MultiDiGraph[str] = nx.MultiDiGraph()
        self._counter = itertools.count()
        self._suffix: dict[str, int] = {}
        self._spans: list[tuple[tuple[int, int], tuple[int, int]]] = []
        self._order: tuple[str, ...] | None = None
        self._made_from: dict[str, set[str]] = {}
        self._heir: dict[str, str] = {}

    # --- reading ----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, node: str) -> bool:
        return node in self._nodes

    @property
    def parameters(self) -> Mapping[str, Weight]:
        """Weights by the value that stands for each."""
        return MappingProxyType(self._parameters)

    def nodes(self) -> Iterator[Node]:
        """Nodes in a topological order that keeps the order of insertion where it can.

        The order is that of the moment of the call; nodes removed since are left out.
        """
        if self._order is None:
            try:
                order = nx.lexicographical_topological_sort(self._depends, self._rank.__getitem__)
                self._order = tuple(order)
            except nx.NetworkXUnfeasible:
                raise VerifyError(f"graph `{self.name}` has a cycle") from None
        for name in self._order:
            if name in self._nodes:
                yield self._nodes[name]

    def node(self, name: str) -> Node:
        """The node called `name`."""
        return self._nodes[name]

    def type(self, value: str) -> TensorType:
        """The type of `value`."""
        try:
            return self._types[value]
        except KeyError:
            raise VerifyError(f"value `%{value}` is never defined") from None

    def has_value(self, value: str) -> bool:
        """Whether some input, parameter or node defines `value`."""
        return value in self._types

    def producer(self, value: str) -> Node | None:
        """The node that defines `value`; `None` for an input or a parameter."""
        name = self._producer.get(value)
        return None if name is None else self._nodes[name]

    def users(self, value: str) -> tuple[Node, ...]:
        """The nodes that read `value`, each once, in the order they came to read it."""
        return tuple(self._nodes[name] for name in self._users.get(value, ()))

    def use_count(self, value: str) -> int:
        """How many nodes read `value`, plus one for each time it is returned."""
        returned = self.outputs.count(value) if value in self._returned() else 0
        return len(self._users.get(value, ())) + returned

    def constant(self, value: str) -> Attr:
        """The `value` attribute if `value` is a 0-d or one-element `constant`, else `None`."""
        node = self.producer(value)
        if node is None or node.op != "constant":
            return None
        held = node.attrs["value"]
        while isinstance(held, tuple):
            if len(held) != 1:
                return None
            held = held[0]
        return held

    def made_from(self, node: str) -> frozenset[str]:
        """The imported nodes, by their names of then, that `node` computes or took the place of.

        Empty for all nodes unless `mark_imported` was called.
        """
        return frozenset(self._made_from.get(node, ()))

    def depends_on(self, node: str, others: Iterable[str]) -> bool:
        """Whether `node` reads, however indirectly, an output of one of `others`.

        The walk stops at nodes that were ordered before all of `others`, so it stays local; nodes
        that took the place of several (`mark_span`) widen what counts as before.
        """
        wanted = set(others)
        floor = min((self._rank[name] for name in wanted), default=(0, 0))
        for low, high in sorted(self._spans, key=lambda span: span[1], reverse=True):
            if high < floor:
                break
            floor = min(floor, low)
        seen = {node}
        stack = [node]
        while stack:
            for before in self._depends.predecessors(stack.pop()):
                if before in wanted:
                    return True
                if before not in seen and self._rank[before] >= floor:
                    seen.add(before)
                    stack.append(before)
        return False

    # --- changing ---------------------------------------------------------------------------

    def mark_imported(self) -> None:
        """Take the nodes as they are for those that `made_from` counts in."""
        self._made_from = {name: {name} for name in self._nodes}
        self._heir.clear()

    def credit(self, nodes: Iterable[str], heirs: Iterable[str]) -> None:
        """Say that together `heirs` compute all that `nodes` did."""
        sources = set().union(*(self._made_from.get(name, ()) for name in nodes))
        for heir in heirs if sources else ():
            if heir in self._nodes:
                self._made_from.setdefault(heir, set()).update(sources)

    def fresh(self, base: str) -> str:
        """A value name that is not taken, made from `base`."""
        base = _UNFIT.sub("_", base) or "v"
        if base not in self._types:
            return base
        for number in itertools.count(self._suffix.get(base, 1)):
            name = f"{base}_{number}"
            if name not in self._types:
                self._suffix[base] = number + 1
                return name
        raise AssertionError  # itertools.count never ends

    def add_input(self, name: str, type: TensorType) -> str:
        """Declare a value given at run time."""
        self._define(name, type)
        self.inputs.append(name)
        return name

    def add_parameter(self, name: str, weight: Weight) -> str:
        """Declare `name` to stand for `weight`."""
        self._define(name, weight.type)
        self._parameters[name] = weight
        return name

    def add(
        self,
        op: str,
        inputs: Iterable[str] = (),
        attrs: Attrs | None = None,
        *,
        names: Iterable[str] | None = None,
        types: Iterable[TensorType] | None = None,
        origin: Origin | None = None,
        at: str | None = None,
    ) -> Node:
        """Add a node; its inputs are defined already.

        Args:
            op: a name in `fusec.ir.ops.OPS`; or one that nothing is known of: an opaque `aten.*` or
                `onnx.*`, or that of an extension that is not installed.
            inputs: values in operand order.
            attrs: attributes.
            names: names of the outputs; by default made from `op`.
            types: types of the outputs: needed for an unknown op, checked for any other.
            origin: where it comes from.
            at: a node whose place in the order the new one takes.

        Raises:
            VerifyError: an input is not defined, or the types do not agree; nothing is changed.
        """
        operands = tuple(inputs)
        held: Attrs = MappingProxyType(dict(attrs)) if attrs else _NO_ATTRS
        declared = None if types is None else tuple(types)
        if op not in OPS:
            if declared is None:
                raise VerifyError(f"`{op}` is opaque: its types must be given")
            result = declared
        else:
            result = OPS[op].infer(tuple(self.type(value) for value in operands), held)
            if declared is not None and declared != result:
                said, meant = map(_types_text, (declared, result))
                raise VerifyError(f"`{op}` gives {meant}, not {said}")
        wanted = [op.rpartition(".")[2]] * len(result) if names is None else list(names)
        if names is None:
            outputs: list[str] = []
            for base in wanted:
                outputs.append(self._reserve(base, outputs))
        else:
            outputs = wanted
        if len(outputs) != len(result):
            raise VerifyError(f"`{op}` has {len(result)} outputs, not {len(outputs)}")
        for name in outputs:
            if name in self._types:
                raise VerifyError(f"value `%{name}` is defined twice")
        node = Node(op, operands, tuple(outputs), held, origin or Origin())
        place = self._rank[at][0] if at is not None else next(self._counter)
        self._rank[node.name] = (place, next(self._counter))
        for name, type in zip(outputs, result, strict=True):
            self._types[name] = type
            self._producer[name] = node.name
        self._nodes[node.name] = node
        self._depends.add_node(node.name)
        self._link(node)
        self._order = None
        return node

    def replace_uses(self, old: str, new: str) -> None:
        """Make every reader of `old`, and the outputs, read `new`; the types agree."""
        if old == new:
            return
        before, after = self.type(old), self.type(new)
        if before != after:
            raise VerifyError(f"`%{new}: {after}` cannot stand for `%{old}: {before}`")
        for user in self.users(old):
            inputs = tuple(new if value == old else value for value in user.inputs)
            self.set_inputs(user.name, inputs)
        self.outputs = [new if value == old else value for value in self.outputs]
        if self._made_from and old in self._producer and new in self._producer:
            gone, heir = self._producer[old], self._producer[new]
            self._heir[gone] = heir
            self.credit((gone,), (heir,))

    def set_inputs(self, node: str, inputs: tuple[str, ...]) -> None:
        """Make `node` read `inputs` instead; its output types stay."""
        old = self._nodes[node]
        for value in inputs:
            self.type(value)
        self._unlink(old)
        self._nodes[node] = replace(old, inputs=inputs)
        self._link(self._nodes[node])
        self._order = None

    def remove(self, node: str) -> None:
        """Remove a node that nothing reads."""
        gone = self._nodes[node]
        for value in gone.outputs:
            if self._users.get(value) or value in self.outputs:
                raise VerifyError(f"`%{value}` is still read")
        self._unlink(gone)
        self._depends.remove_node(node)
        for value in gone.outputs:
            del self._types[value], self._producer[value]
            self._users.pop(value, None)
        del self._nodes[node], self._rank[node]
        self._made_from.pop(node, None)

    def mark_span(self, nodes: Iterable[str]) -> None:
        """Say that one node is about to take the place of all `nodes`, see `depends_on`."""
        ranks = [self._rank[name] for name in nodes]
        self._spans.append((min(ranks), max(ranks)))

    def renumber(self) -> None:
        """Order all nodes anew, so that `depends_on` walks as little as it can."""
        names = [node.name for node in self.nodes()]
        self._rank = {name: (next(self._counter), 0) for name in names}
        self._spans.clear()

    def prune(self, candidates: Iterable[str] | None = None) -> int:
        """Remove nodes that nothing reads, and then those that only they read.

        Args:
            candidates: the nodes to begin with; by default all.

        Returns:
            How many were removed.
        """
        returned = self._returned()
        stack = list(self._nodes if candidates is None else candidates)
        heirs: dict[str, str] = {}
        removed = 0
        while stack:
            name = stack.pop()
            node = self._nodes.get(name)
            if node is None or any(self._users.get(v) or v in returned for v in node.outputs):
                continue
            before = [self._producer[v] for v in node.inputs if v in self._producer]
            stack += before
            if (heir := self._heir.get(name) or heirs.get(name)) is not None:
                self.credit((name,), (self._last_heir(heir),))
                heirs.update(dict.fromkeys(before, heir))
            self.remove(name)
            removed += 1
        return removed

    def drop_unused_parameters(self) -> None:
        """Forget parameters that nothing reads."""
        returned = self._returned()
        for value in [v for v in self._parameters if not self._users.get(v) and v not in returned]:
            del self._parameters[value], self._types[value]

    def copy(self) -> Graph:
        """A graph that can be changed without changing this one."""
        other = Graph(self.name, self.symbols)
        other.inputs, other.outputs = list(self.inputs), list(self.outputs)
        other.output_names = list(self.output_names)
        other._parameters, other._types = dict(self._parameters), dict(self._types)
        other._nodes, other._rank = dict(self._nodes), dict(self._rank)
        other._producer = dict(self._producer)
        other._users = {value: dict(users) for value, users in self._users.items()}
        other._depends = self._depends.copy()
        other._counter = itertools.count(next(self._counter))
        other._suffix, other._order = dict(self._suffix), self._order
        other._spans = list(self._spans)
        other._made_from = {name: set(sources) for name, sources in self._made_from.items()}
        other._heir = dict(self._heir)
        return other

    # --- checking ---------------------------------------------------------------------------

    def verify(self) -> None:
        """Check the graph against its own rules.

        Raises:
            VerifyError: a value is read before it is defined, the graph has a cycle, a declared
                type is not the one its operation gives, or a size names an unknown symbol.
        """
        defined = {*self.inputs, *self._parameters}
        for node in self.nodes():
            for value in node.inputs:
                if value not in defined:
                    raise VerifyError(f"`{node.op}` reads `%{value}`, not defined", at=node.name)
            declared = tuple(self._types[value] for value in node.outputs)
            if node.op in OPS:
                operands = tuple(self._types[value] for value in node.inputs)
                inferred = OPS[node.op].infer(operands, node.attrs)
                if inferred != declared:
                    said, meant = map(_types_text, (declared, inferred))
                    raise VerifyError(f"`{node.op}` gives {meant}, not {said}", at=node.name)
            defined.update(node.outputs)
            for kind in declared:
                self._check_symbols(node.name, kind)
        for value in self.outputs:
            if value not in defined:
                raise VerifyError(f"output `%{value}` is never defined")
        if len(self.output_names) != len(self.outputs):
            raise VerifyError("each output needs a name")

    # --- inside -----------------------------------------------------------------------------

    def _last_heir(self, node: str) -> str:
        """Of nodes that took each other's places, beginning with `node`, the one that is there."""
        seen: set[str] = set()
        while node not in self._nodes and node in self._heir and node not in seen:
            seen.add(node)
            node = self._heir[node]
        return node

    def _returned(self) -> frozenset[str]:
        return frozenset(self.outputs)

    def _reserve(self, base: str, taken: list[str]) -> str:
        name = self.fresh(base)
        while name in taken:
            self._suffix[base] = self._suffix.get(base, 0) + 1
            name = f"{base}_{self._suffix[base]}"
            if name in self._types:
                name = self.fresh(base)
        return name

    def _define(self, name: str, type: TensorType) -> None:
        if name in self._types:
            raise VerifyError(f"value `%{name}` is defined twice")
        self._check_symbols(name, type)
        self._types[name] = type

    def _check_symbols(self, name: str, type: TensorType) -> None:
        for dim in type.shape:
            if not isinstance(dim, int) and (unknown := symbols_of(dim) - self.symbols.keys()):
                raise VerifyError(f"`%{name}: {type}` names unknown symbol `{min(unknown)}`")

    def _link(self, node: Node) -> None:
        for value in node.inputs:
            self._users.setdefault(value, {})[node.name] = None
            if (before := self._producer.get(value)) is not None:
                self._depends.add_edge(before, node.name, key=value)

    def _unlink(self, node: Node) -> None:
        for value in dict.fromkeys(node.inputs):
            self._users[value].pop(node.name, None)
            if (before := self._producer.get(value)) is not None:
                self._depends.remove_edge(before, node.name, key=value)


def _types_text(types: tuple[TensorType, ...]) -> str:
    return ", ".join(f"`{type}`" for type in types) or "nothing"
