"""The products of a program whose tiles can be chosen, each as a graph of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from fusec import symbolic
from fusec.dtypes import DTYPES
from fusec.ir import Graph, Node, TensorType
from fusec.kernels.launch import Call, Launch, Storage, dense_strides
from fusec.kernels.registry import Kernel, choose
from fusec.kernels.triton_gemm import Tile
from fusec.kernels.tuning import (
    ROWS_OF_TIERS,
    TIERS,
    TYPICAL_ROWS,
    Key,
    Tier,
    candidates,
    choosing,
    estimated_tile,
    tuned_tile,
)
from fusec.lower.storage import of_type
from fusec.symbolic import Dim
from fusec.target import Target

TUNED = ("linear.triton", "linear_epilogue.triton")
"""The kernels that ask for their tiles."""

_EDGES = (0, *(rows.most for rows in ROWS_OF_TIERS), math.inf)

ROWS_OF_TIER: dict[Tier, tuple[int, float]] = {
    tier: (int(below) + 1, most)
    for tier, (below, most) in zip(TIERS, pairwise(_EDGES), strict=True)
}
"""The fewest and the most rows that a tile is for."""

ROWS = symbolic.symbol("rows")


@dataclass(frozen=True, slots=True)
class Variant:
    """A product with a certain tile.

    Attributes:
        launches: what runs for its rows, in order.
        scratch: bytes of each buffer between the launches, by its number.
    """

    launches: tuple[Launch, ...]
    scratch: dict[int, Dim]


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A product of a program, alone and with dense operands.

    Attributes:
        key: what its tile depends on.
        kernel: that computes it.
        graph: of one node; its operands are inputs and parameters, one after the other.
        node: of this graph.
        target: for what.
        rows: for how many it is measured.
        inputs: where its operands lie, each in a buffer of its own.
        outputs: where its results lie, in the buffers that follow.
    """

    key: Key
    kernel: Kernel
    graph: Graph
    node: Node
    target: Target
    rows: int
    inputs: tuple[Storage, ...]
    outputs: tuple[Storage, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """The value of every symbol."""
        return {"rows": self.rows} if self.graph.symbols else {}

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """What can be chosen: first what the model of cost chooses, then what a table has."""
        static = estimated_tile(self.target, self.key)
        tuned = tuned_tile(self.target, self.key) or static
        return tuple(dict.fromkeys((static, tuned, *candidates(self.target, self.key))))

    def bytes_of(self, storage: Storage) -> int:
        """The size of the buffer of an operand or a result."""
        steps = zip(storage.shape, storage.strides, strict=True)
        last = sum((size - 1) * step for size, step in steps)
        itemsize = DTYPES[storage.dtype].itemsize
        return symbolic.evaluate((last + 1) * itemsize, self.sizes)

    def variant(self, tile: Tile) -> Variant:
        """What runs with `tile`."""
        scratch = _Scratch(len(self.inputs) + len(self.outputs))
        call = Call(self.graph, self.node, self.target, self.inputs, self.outputs, scratch)
        with choosing(lambda target, key: tile if key == self.key else None):
            launches = self.kernel.launches(call)
        runs = (
            launch
            for launch in launches
            if all(symbolic.evaluate(size, self.sizes) for size in launch.grid)
        )
        return Variant(tuple(runs), scratch.bytes)


@dataclass(slots=True)
class _Scratch:
    """Numbers buffers from `first` on."""

    first: int
    bytes: dict[int, Dim] = field(default_factory=dict)

    def __call__(self, dtype: str, shape: tuple[Dim, ...]) -> Storage:
        number = self.first + len(self.bytes)
        self.bytes[number] = symbolic.product(shape) * DTYPES[dtype].itemsize
        return Storage(number, dtype, shape, dense_strides(shape))


def products_of(graph: Graph, target: Target) -> tuple[Product, ...]:
    """Every product of `graph` with a tile to choose, once a key, for rows that it can have.

    Args:
        graph: rewritten for `target`.
        target: a GPU.
    """
    found: dict[Key, Product] = {}
    seen: set[tuple[object, ...]] = set()
    for node in graph.nodes():
        form = (node.op, *sorted(node.attrs.items()), *map(graph.type, node.inputs))
        if form in seen:
            continue
        seen.add(form)
        kernel = choose(graph, node, target).kernel
        if kernel is not None and kernel.name in TUNED:
            for product in _products(graph, node, kernel, target):
                found.setdefault(product.key, product)
    return tuple(found.values())


def _products(graph: Graph, node: Node, kernel: Kernel, target: Target) -> Iterator[Product]:
    """One product for each tier of rows that `node` can have."""
    leading = graph.type(node.outputs[0]).shape[:-1]
    count = symbolic.product(leading)
    least, most = (max(1, end) for end in symbolic.bounds(count, graph.symbols))
    single = Graph(node.name)
    rows: Dim = int(least)
    if least != most:
        rows = ROWS
        single.symbols["rows"] = (int(least), None if most == math.inf else int(most))
    names: list[str] = []
    for index, value in enumerate(node.inputs):
        weight, name = graph.parameters.get(value), f"operand_{index}"
        if weight is not None:
            names.append(single.add_parameter(name, weight))
        else:
            names.append(single.add_input(name, _with_rows(graph.type(value), leading, rows)))
    alone = single.add(node.op, names, node.attrs)
    single.outputs = [*alone.outputs]
    kinds = [single.type(value) for value in (*names, *alone.outputs)]
    storages = tuple(of_type(number, kind) for number, kind in enumerate(kinds))
    inputs, outputs = storages[: len(names)], storages[len(names) :]
    for key in _asked(single, alone, kernel, target, inputs, outputs):
        measured = _measured_rows(key.tier, least, most)
        if measured is not None:
            yield Product(key, kernel, single, alone, target, measured, inputs, outputs)


def _with_rows(kind: TensorType, leading: tuple[Dim, ...], rows: Dim) -> TensorType:
    """The type of an operand with its leading axes, if they are those of the result, as one."""
    if not leading or kind.shape[:-1] != leading:
        return kind
    return TensorType(kind.dtype, (rows, kind.shape[-1]))


def _asked(
    graph: Graph,
    node: Node,
    kernel: Kernel,
    target: Target,
    inputs: tuple[Storage, ...],
    outputs: tuple[Storage, ...],
) -> list[Key]:
    """The keys that `kernel` asks tiles for."""
    keys: dict[Key, None] = {}

    def note(_: Target, key: Key) -> None:
        keys[key] = None

    scratch = _Scratch(len(inputs) + len(outputs))
    with choosing(note):
        kernel.launches(Call(graph, node, target, inputs, outputs, scratch))
    return list(keys)


def _measured_rows(tier: Tier, least: float, most: float) -> int | None:
    """How many rows a tile of `tier` is measured with; `None` if a product never has as many."""
    fewest, largest = ROWS_OF_TIER[tier]
    low, high = max(fewest, least), min(largest, most)
    return int(min(max(TYPICAL_ROWS[tier], low), high)) if low <= high else None
